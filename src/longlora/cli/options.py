"""Options shared by several commands, each declared once with its help text and check.

A command may take a dataclass of options (`unfolded`), which keeps related options together in the code.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from longlora.errors import ConfigError
from longlora.support.choices import DocumentKindOrAuto, DtypeName, Strategy

INTERRUPTED = 130  # exit status after Ctrl-C: 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM

Number = TypeVar("Number", int, float)
Command = TypeVar("Command", bound=Callable[..., Any])


def existing_model(name: str | None) -> str | None:
    """Check that a local model, if given, exists, so that a typo is reported before torch is loaded; hub names pass.

    Raises:
        CheckpointError: the name looks like a path, and there is no model there.
    """
    from longlora.models.directories import model_source

    if name is not None:
        model_source(name)
    return name


def existing_task_files(paths: list[Path] | None) -> list[Path] | None:
    """Check that lm-eval's YAML files exist.

    Raises:
        ConfigError: one does not.
    """
    from longlora.evaluation.harness_tasks import check_task_files

    check_task_files(paths or ())
    return paths


def existing_texts(names: list[str] | None) -> list[str] | None:
    """Check that local texts exist; names of hub data sets pass.

    Raises:
        DataError: there is no such file, folder or data set, or the folder is empty.
    """
    from longlora.support.locate import locate

    for name in names or ():
        if not name.endswith(".bin"):  # token files have a reader and checks of their own
            locate(name)
    return names


RecipeName = Annotated[str, typer.Argument(help="Recipe: a YAML file, or a name from `longlora recipes`.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Recipe values to override, as section.key=value.")]
Model = Annotated[str, typer.Argument(help="Model or adapter directory, hub name, or `tiny`.", callback=existing_model)]
Models = Annotated[
    list[str],
    typer.Argument(
        help="Model or adapter directories, hub names, or `tiny`.", callback=lambda names: [*map(existing_model, names)]
    ),
]
Dtype = Annotated[
    DtypeName, typer.Option(help="Type of the weights; auto: bfloat16 on a GPU that supports it, else float32.")
]
DeviceMap = Annotated[str | None, typer.Option(help="`auto` spreads a model across all GPUs and CPU memory.")]
Data = Annotated[
    list[str],
    typer.Option(help="Texts: files, folders, globs, data sets, or one .bin of tokens.", callback=existing_texts),
]
HeldOutData = Annotated[
    list[str] | None,
    typer.Option(
        help="Held-out texts, as for the other commands; default: Python's standard library.", callback=existing_texts
    ),
]
TextColumn = Annotated[str, typer.Option(help="Column with the text, for tabular data.")]
Split = Annotated[str, typer.Option(help="Split, for data that has splits.")]
MaxDocuments = Annotated[int | None, typer.Option(min=1, help="Read at most this many documents.")]
_SEED = typer.Option(help="Random seed.")
Seed = Annotated[int, _SEED]
SeedOrNone = Annotated[int | None, _SEED]
CallSeed = Annotated[int, typer.Option(help="Sent with every call.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Chat = Annotated[bool, typer.Option("--chat/--no-chat", help="Use the tokenizer's chat template, if it has one.")]
Host = Annotated[str, typer.Option(help="Address to listen on; by default only this machine can connect.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Additional host name that requests may use, such as a proxy's."),
]

_CONTEXT = typer.Option(min=1, help="Context length in tokens.")
Context = Annotated[int, _CONTEXT]
ContextOrNone = Annotated[int | None, _CONTEXT]
UnstatedContext = Annotated[
    int | None, typer.Option(min=1, help="Context length in tokens, if nothing else states it.")
]
RowLength = Annotated[int, typer.Option(min=1, help="Row length in training, in tokens (context_length).")]

Lengths = Annotated[str, typer.Option(help="Comma-separated context lengths in tokens.")]
PromptLengths = Annotated[str, typer.Option(help="Comma-separated lengths in tokens, prompt and answer together.")]
SuiteLengths = Annotated[
    str, typer.Option(help="Comma-separated lengths in tokens; default: fractions of the longest context.")
]
BenchmarkLengths = Annotated[
    str, typer.Option(help="Lengths in tokens for RULER and BABILong; default: all of theirs up to the context.")
]
Evaluator = Annotated[
    str | None,
    typer.Option(
        help="Model that chooses LongPPL's tokens, within its own context; default: the base, if known.",
        callback=existing_model,
    ),
]
TaskFile = Annotated[
    list[Path] | None,
    typer.Option(help="Your own task, as an lm-eval YAML file; may be repeated.", callback=existing_task_files),
]
ReportFolder = Annotated[Path, typer.Option(help="Folder for report.html and report.md.")]

Documents = Annotated[list[str], typer.Argument(help="PDF, EPUB, HTML, Markdown and text files, or folders of them.")]
DocumentKind = Annotated[DocumentKindOrAuto, typer.Option(help="Kind of all documents; decides what `make-qa` asks.")]
FilesInParallel = Annotated[int, typer.Option("--processes", min=1, help="Files to read in parallel.")]
Ratio = Annotated[str, typer.Option(help="Ratio of long rows to short rows.")]

StrategyOfPlan = Annotated[
    Strategy | None,
    typer.Option(help="Default: `single` on one GPU; on several, the recipe's hardware.strategy, or `ddp`."),
]
StrategyOfRun = Annotated[
    Strategy | None,
    typer.Option(
        help="How processes share the work (compared in docs/strategies.md); default: the recipe's hardware.strategy "
        "if hardware.gpus are visible."
    ),
]


@dataclass(frozen=True)
class Weights:
    """How to load a model."""

    device_map: DeviceMap = None
    dtype: Dtype = "auto"


@dataclass(frozen=True)
class Machine:
    """The hardware to plan a run for."""

    gpu_type: Annotated[
        str, typer.Option(help="GPU to plan memory and time for: a100-80gb, h100-80gb, h200, b200, rtx-4090, …")
    ] = ""
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs; default: the recipe's hardware.gpus, or 1.")
    ] = None
    memory: Annotated[
        float | None,
        typer.Option(min=0.1, help="Memory per GPU in GiB; default: the GPU type's, or hardware.memory_gib."),
    ] = None
    host_memory: Annotated[
        float | None, typer.Option(min=0.1, help="Host memory in GiB; not checked unless given.")
    ] = None
    strategy: StrategyOfPlan = None


@dataclass(frozen=True)
class Columns:
    """Where texts are in tabular data, and how many to read."""

    text_column: TextColumn = "text"
    split: Split = "validation"
    max_documents: MaxDocuments = None


def unfolded(command: Command) -> Command:
    """Expand each parameter that is a dataclass of options into one option per field, and pass the dataclass on.

    A field of such a dataclass may be one itself.
    """
    hints = get_type_hints(command, include_extras=True)
    kept, groups = list[inspect.Parameter](), dict[str, Callable[..., Any]]()
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if is_dataclass(kind):
            assert isinstance(kind, type)
            groups[parameter.name] = build = unfolded(kind)
            kept += inspect.signature(build).parameters.values()
        else:
            kept.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command, updated=())
    def call(**values: Any) -> Any:
        for name, build in groups.items():
            values[name] = build(**{option: values.pop(option) for option in inspect.signature(build).parameters})
        return command(**values)

    call.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
    return call  # type: ignore[return-value]


def parse_numbers(text: str, option: str, kind: type[Number]) -> list[Number] | None:
    """Parse comma-separated numbers; return None for an empty string.

    Raises:
        ConfigError: one of them is not a number; the message names the option.
    """
    if not text:
        return None
    try:
        return [kind(part.replace("_", "")) for part in text.split(",")]
    except ValueError as error:
        what, example = ("whole numbers", "256,1024") if kind is int else ("numbers", "0,0.5,1")
        raise ConfigError(f"{option} must be {what}, as in {example}; got {text!r}") from error
