"""The command line. Commands import what they need inside their bodies, so that help is instant."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from longlora import __version__
from longlora.cli.chat import add_commands as add_conversations
from longlora.cli.corpus import corpus
from longlora.cli.export import add_commands as add_uses
from longlora.cli.suite import evaluate
from longlora.errors import LongLoRAError

Strategy = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]  # as in `config`, which help does not import
INTERRUPTED = 130  # the status that typer gives a command ended by Ctrl-C
TERMINATED = 143  # 128 + SIGTERM

app = typer.Typer(
    name="longlora",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(evaluate, name="eval")
app.add_typer(corpus, name="corpus")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longlora {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and leave.")
    ] = False,
) -> None:
    """Extend a language model's context with LongLoRA (arXiv 2309.12307)."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, the adapter and the merged model.")] = Path(
        "longlora-demo"
    ),
) -> None:
    """Extend the tiny model that ships with longlora from 256 to 1024 tokens, and show before and after."""
    from longlora.demo.walkthrough import run_demo

    run_demo(out)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one, to read or to save as your own.")] = None,
) -> None:
    """List the recipes that ship with longlora, or print one."""
    from longlora.recipes import describe_recipe, find_recipe, recipe_names

    if name is not None:
        typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)
        return
    width = max(map(len, recipe_names()))
    for known in recipe_names():
        typer.echo(f"{known:{width}}  {describe_recipe(known)}")


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="Recipe: a YAML file, or a name out of `longlora recipes`.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Values to change, as section.key=value.")] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs; by default hardware.gpus of the recipe.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.1, help="GiB of each; by default the GPU type's, or hardware.memory_gib of the recipe."),
    ] = None,
    gpu_type: Annotated[str, typer.Option(help="For the time: a100-80gb, h100-80gb, h200, b200, rtx-4090, …")] = "",
    host_memory: Annotated[float | None, typer.Option(min=0.1, help="GiB of the host; without, not checked.")] = None,
    strategy: Annotated[
        Strategy | None,
        typer.Option(help="By default `single` on one GPU, on several hardware.strategy of the recipe, or `ddp`."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what a recipe needs in memory and time, without loading anything; status 1 if it does not fit."""
    from longlora.config import load_recipe
    from longlora.planner import GIB, find_gpu, make_plan
    from longlora.planner.plan_report import plan_to_dict, print_plan
    from longlora.training.preflight import planned_run

    loaded = load_recipe(recipe, overrides or [])
    gpus = gpus or loaded.hardware.gpus
    run = planned_run(loaded, num_gpus=gpus, strategy=strategy or loaded.hardware.strategy_on(gpus))
    gpu = find_gpu(gpu_type) if gpu_type else None
    memory_gib = memory or (gpu.memory_gib if gpu else loaded.hardware.memory_gib)
    result = make_plan(
        run,
        memory_bytes=int(memory_gib * GIB),
        host_memory_bytes=int(host_memory * GIB) if host_memory else None,
        gpu=gpu,
    )
    if as_json:
        typer.echo(json.dumps(plan_to_dict(result), indent=2))
    else:
        from rich.console import Console

        print_plan(result, Console())
        if loaded.num_train_epochs is not None:
            typer.echo(
                f"num_train_epochs={loaded.num_train_epochs:g}: the number of steps depends on the data, and the time "
                "is that of one step"
            )
    if not result.fits:
        raise typer.Exit(1)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Recipe: a YAML file, or a name out of `longlora recipes`.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Values to change, as section.key=value.")] = None,
    strategy: Annotated[
        Strategy | None,
        typer.Option(
            help="What divides the work among processes (docs/engines.md compares them); by default hardware.strategy "
            "of the recipe where hardware.gpus are visible."
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on each node; by default one for each visible GPU.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that share the run.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Which of them this is, from 0.")] = 0,
    main_address: Annotated[str | None, typer.Option(help="Address of node 0.")] = None,
    main_port: Annotated[int | None, typer.Option(min=1, help="Port on node 0; by default 29500.")] = None,
    miniature: Annotated[
        bool, typer.Option("--miniature", help="A dry run: a random miniature of the model, four short steps.")
    ] = False,
) -> None:
    """Follow a recipe, in one process or several; started again after an interruption, go on where it stopped."""
    from longlora.config import load_recipe
    from longlora.distributed import is_launched, is_main_process, shutdown
    from longlora.training.preflight import check_places

    loaded = load_recipe(recipe, overrides or [])
    if miniature:
        from longlora.training.miniature import miniature_recipe

        loaded = miniature_recipe(loaded)
    merges = loaded.merge and loaded.tuning != "full"
    if not is_launched():
        check_places(loaded, merge_follows=merges)
    from longlora.training.launch import check_started, launch, plan_launch, strategy_of

    if is_launched():
        check_started(strategy, processes)
    else:
        launch_plan = plan_launch(
            strategy=strategy or strategy_of(loaded, nodes=nodes),
            per_node=processes,
            nodes=nodes,
            node_rank=node_rank,
            main_address=main_address,
            main_port=main_port,
        )
        if launch_plan is not None:
            raise _Launched(launch(launch_plan, ["train", recipe, *(overrides or []), *["--miniature"] * miniature]))
    from longlora.training.run import train as run_training

    result = run_training(loaded, merge_follows=merges)
    decides = is_main_process()
    shutdown()
    if not decides:
        return
    typer.echo(f"written to {result}")
    merged = result.parent / "merged"
    if merges:
        _merge_result(result, merged)
    elif loaded.tuning != "full":
        typer.echo(f"next: longlora merge {result} {merged}")


def _merge_result(adapter: Path, merged: Path) -> None:
    """Merge what a run trained, unless an earlier start did; a failure costs nothing but the merge."""
    from longlora.merge import merge_adapter
    from longlora.support.files import remove_partial
    from longlora.training.run_summary import attempted

    remove_partial(merged)
    if not merged.exists():
        with attempted(f"merging into {merged}"):
            merge_adapter(adapter, merged)
        if not merged.exists():
            raise typer.Exit(1)
    typer.echo(f"merged into {merged}")


@app.command()
def report(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Folders of `longlora eval`, of a suite or of a training run; NAME=PATH names what stands below."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.html and report.md.")],
) -> None:
    """Lay models side by side on one page: how far they read, by which test, at what cost."""
    from longlora.report.write import write_report

    typer.echo(f"written to {write_report(paths, out)}")


add_uses(app)
add_conversations(app)


def main() -> None:
    """Run the command line; a user's mistake ends with status 2 and a message, an interrupt with 130."""
    logger = logging.getLogger("longlora")
    logger.setLevel(logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    logger.handlers = [handler]
    _quiet_libraries()
    try:
        app()
    except LongLoRAError as error:
        if not _recorded(error):
            print(f"longlora: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        _say_why(end)
        raise
    except Exception as error:
        if _recorded(error):  # the launcher shows the one traceback that explains the others
            sys.exit(1)
        raise
    finally:  # who calls this from Python may close the stream afterwards
        logger.removeHandler(handler)


# What libraries tell one another, and no user could mend. Loggers by name, with the beginning of what they say.
_IDLE_RECORDS = {
    # At import, on processors with AVX512-BF16: an optional kernel from the hub is missing (PEFT imports bitsandbytes).
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # Of checkpoints saved within the same second; they are told apart by their numbers then.
    "transformers.trainer_utils": "mtime may not be reliable",
}
_IDLE_WARNINGS = {
    # TRL and PEFT still call transformers by names older than 5.23.
    "`gradient_checkpointing` is deprecated": FutureWarning,
    "`is_gradient_checkpointing` is deprecated": FutureWarning,
    # transformers below 5.20 takes a model whose first weights lie on the disk to want its input there.
    r"You are calling .generate\(\) .* model is on meta": UserWarning,
}


def _quiet_libraries() -> None:
    for name in _IDLE_RECORDS:
        logging.getLogger(name).addFilter(_is_of_use)
    for message, category in _IDLE_WARNINGS.items():
        warnings.filterwarnings("ignore", message=message, category=category)


def _is_of_use(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_IDLE_RECORDS[record.name])


def _recorded(error: Exception) -> bool:
    """Whether the launcher that started this process tells the user of an error."""
    from longlora.distributed import LAUNCHER_VARIABLE

    if LAUNCHER_VARIABLE not in os.environ:
        return False
    from longlora.training.launch import record_failure

    record_failure(error)
    return True


_KEEPING_NOTHING = {"chat", "web", "serve"}  # commands whose end leaves nothing to go on with


class _Launched(SystemExit):
    """The end of a launcher, whose processes have said why they ended."""


def _say_why(end: SystemExit) -> None:
    """Say, once for all processes, that the run can go on."""
    if isinstance(end, _Launched) or os.environ.get("RANK", "0") != "0":
        return
    if _KEEPING_NOTHING.intersection(sys.argv[1:2]):
        return
    if end.code == INTERRUPTED:
        print("longlora: interrupted; the same command goes on where it stopped", file=sys.stderr)
    elif end.code == TERMINATED:
        kept = getattr(end, "message", "ended")
        print(f"longlora: SIGTERM: {kept}; the same command goes on from there", file=sys.stderr)
