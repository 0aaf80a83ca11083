"""The commands merge, import and serve, for trained models. They import what they need inside their bodies."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from longlora.cli.options import INTERRUPTED, AllowHost, Host, Model, Port, UnstatedContext
from longlora.errors import CheckpointError, ConfigError
from longlora.support.choices import DtypeName, EngineName

KEY_VARIABLE = "LONGLORA_API_KEY"


def merge(
    adapter: Annotated[Path, typer.Argument(help="Adapter directory.")],
    output: Annotated[Path, typer.Argument(help="Directory to write the merged model to.")],
    dtype: Annotated[
        DtypeName, typer.Option(help="Type of the merged weights; auto: as in the base, weight by weight.")
    ] = "auto",
    v4_rope: Annotated[
        bool | None,
        typer.Option(
            "--v4-rope/--no-v4-rope",
            help="Require positions that transformers 4 can read, or omit its keys from config.json.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check/--no-check", help="Compare logits with the adapter's; needs memory for one whole model."),
    ] = True,
    push_to_hub: Annotated[str, typer.Option(metavar="REPO", help="Upload the result to this repository.")] = "",
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
) -> None:
    """Merge an adapter into its base model, file by file, and check the result against the adapter."""
    from longlora.models.directories import check_adapter
    from longlora.support.files import check_absent

    if private and not push_to_hub:
        raise ConfigError("--private applies to uploads; name the repository with --push-to-hub")
    check_adapter(adapter)
    check_absent(output)
    from longlora.merge import check_login, merge_adapter
    from longlora.merge import push_to_hub as upload

    if push_to_hub:
        check_login(push_to_hub)
    report = merge_adapter(adapter, output, dtype=dtype, older_readers=v4_rope, check=check)
    compared = (
        f"; logits differ from the adapter's by at most {report.largest_difference:.2g} "
        f"(largest logit {report.largest_logit:.3g}, {report.probe_tokens} tokens)"
    )
    typer.echo(f"merged into {output}{compared if check else ', not compared with the adapter'}")
    if push_to_hub:
        typer.echo(f"uploaded to {upload(output, push_to_hub, private=private)}")


def import_weights(
    source: Annotated[str, typer.Argument(help="Directory or hub name of weights published by the paper's authors.")],
    output: Annotated[Path, typer.Argument(help="Directory to write the adapter or the model to.")],
    base: Annotated[str, typer.Option(help="Base model, if it is not where the weights say.")] = "",
    context: UnstatedContext = None,
    lora_only: Annotated[
        bool, typer.Option("--lora-only", help="Accept LoRA weights without embeddings and norms.")
    ] = False,
) -> None:
    """Convert published LongLoRA weights to an adapter or a model that other programs can read."""
    from longlora.support.files import check_absent

    folder = Path(source).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or source.startswith((".", "~"))):
        raise CheckpointError(f"there is no directory {source}, and it is not a hub name")
    check_absent(output)
    from longlora.released import import_released

    report = import_released(source, output, base=base, context_length=context, lora_only=lora_only)
    kind, found = f"an adapter on {report.base}" if report.is_adapter else "a model", report.context
    typer.echo(
        f"imported into {output}: {kind} that reads {found.length:,} tokens (says {found.known_from}; positions "
        f"divided by {found.factor:g})"
    )
    if report.is_adapter:
        typer.echo(f"next: longlora merge {output} {output.with_name(output.name + '-merged')}")


def serve(
    model: Model,
    host: Host = "localhost",
    port: Port = 8000,
    engine: Annotated[EngineName, typer.Option(help="Server to use; auto: vLLM if installed.")] = "auto",
    name: Annotated[str, typer.Option(help="Model name for clients; default: the folder's name.")] = "",
    api_key: Annotated[str, typer.Option(envvar=KEY_VARIABLE, help="API key that clients must send.")] = "",
    allow_host: AllowHost = None,
) -> None:
    """Serve a model through an OpenAI-compatible API, with vLLM or transformers; adapters are merged first."""
    from longlora.serving import serve as run_server

    try:
        run_server(
            model,
            host=host,
            port=port,
            engine=engine,
            name=name,
            api_key=api_key,
            allowed_hosts=allow_host or (),
            ready=typer.echo,
        )
    except (KeyboardInterrupt, SystemExit) as end:
        # Everything is closed. A normal exit would spend seconds unloading torch while the user waits.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else INTERRUPTED)
