"""The command line. Commands import what they need inside their bodies, which keeps `--help` instant."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer

from longlora import __version__
from longlora.cli import chat, doctor, export, train
from longlora.cli.corpus import corpus
from longlora.cli.eval_suite import evaluate
from longlora.cli.options import INTERRUPTED, TERMINATED, ReportFolder
from longlora.distributed import tell_launcher
from longlora.errors import ConfigError, LongLoRAError, LostProcessError, ResourceError, first_line

app = typer.Typer(
    name="longlora",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
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
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Extend a language model's context with LongLoRA (arXiv 2309.12307)."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, the adapter and the merged model.")] = Path(
        "longlora-demo"
    ),
) -> None:
    """Extend the bundled tiny model from 256 to 1024 tokens, and show results before and after."""
    if (out / "report.json").exists():
        raise ConfigError(f"{out} holds a finished demo; choose another folder, or delete it")
    from longlora.demo.walkthrough import run_demo

    run_demo(out)


def report(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Folders of `longlora eval`, a suite, lm-eval or a training run; NAME=PATH sets the model's name."
        ),
    ],
    out: ReportFolder,
) -> None:
    """Compare models on one page: how far each reads, by which test, at what cost."""
    from longlora.report.write import write_report

    typer.echo(f"written to {write_report(paths, out)}")


def compare(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Finished evaluations: folders, or lm-eval's results_….json; NAME=PATH sets the model's name."
        ),
    ],
    out: ReportFolder = Path("comparison"),
) -> None:
    """Compare two or more finished evaluations, ours or lm-eval's, on the page of `longlora report`."""
    from longlora.report.collect import collect
    from longlora.report.verdict import lead
    from longlora.report.write import write_report

    models = collect(paths).models
    if len(paths) < 2 or len(models) < 2:
        raise ConfigError(
            f"{' and '.join(paths)} hold results of {len(models)} model{'s' * (len(models) != 1)}, but comparing "
            "takes two: add another folder, or distinguish two states of a model with NAME=PATH"
        )
    page = write_report(paths, out)
    for model in models:
        typer.echo(lead(model))
    typer.echo(f"written to {page}")


for command in (
    train.recipes,
    train.plan,
    train.init,
    train.train,
    report,
    compare,
    export.merge,
    export.serve,
    chat.chat,
    chat.web,
    doctor.doctor,
):
    app.command()(command)
app.command("import")(export.import_weights)


def main() -> None:
    """Run the command line; a user's mistake exits with status 2 and a message, an interrupt with 130."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed at start, as by `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - stays open until the process ends
    logger = logging.getLogger("longlora")
    logger.setLevel(logging.INFO)
    handler = _StderrHandler()
    logger.handlers = [handler]
    _quiet_libraries()
    try:
        with _mistakes_of_the_machine(), _every_interrupt():
            app()
    except LongLoRAError as error:
        if not tell_launcher(error):
            print(f"longlora: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, LostProcessError) else 2)
    except SystemExit as end:
        _say_why(end)
        raise
    except Exception as error:
        if tell_launcher(error):  # the launcher shows only the traceback that explains the others
            sys.exit(1)
        raise
    finally:  # a caller from Python may close the stream afterwards
        logger.removeHandler(handler)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, which a progress bar redirects to the lines above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "can't start new thread",
    "failed to map segment",  # of a library
)
_SCARCE_BYTES = 16 << 20


@contextmanager
def _mistakes_of_the_machine() -> Iterator[None]:
    """Turn a full or unwritable disk, a vanished file and exhausted memory into a message, for every command.

    Files being written are temporary at that point, and the block that created them removes them (`support/files.py`).
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not a system error: libraries use the class for others too
            raise
        from longlora.support.files import resource_error

        raise resource_error(error) from error
    except (MemoryError, RuntimeError, SystemError, ImportError) as error:
        if not _is_of_memory(error):
            raise
        raise ResourceError(
            f"memory ran out ({first_line(error)}); `longlora plan RECIPE` shows what takes memory in a run, and what "
            "helps"
        ) from error


@contextmanager
def _every_interrupt() -> Iterator[None]:
    """Deliver a Ctrl-C again that arrives inside a finalizer, where Python drops exceptions."""
    report = sys.unraisablehook

    def repeat(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            return report(unraisable)
        while True:
            try:
                # Later: while this hook runs, it would be dropped again, and on a busy machine the thread starts late.
                return threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            except KeyboardInterrupt:
                continue

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = report


def _is_of_memory(error: Exception) -> bool:
    from longlora.support.machine import can_allocate

    if isinstance(error, SystemError):  # CPython may lose a MemoryError on its way up
        return not can_allocate(_SCARCE_BYTES)
    return isinstance(error, MemoryError) or any(said in str(error) for said in _NO_MEMORY)


# Library messages that no user can act on: logger names, with the beginning of the message.
_IDLE_RECORDS = {
    # At import, on processors with AVX512-BF16: an optional kernel from the hub is missing (PEFT imports bitsandbytes).
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # For checkpoints saved within the same second, which are then ordered by their numbers.
    "transformers.trainer_utils": "mtime may not be reliable",
}
_IDLE_WARNINGS = {
    # TRL and PEFT still use names that transformers 5.23 deprecated.
    "`gradient_checkpointing` is deprecated": FutureWarning,
    "`is_gradient_checkpointing` is deprecated": FutureWarning,
    # If the first weights are offloaded to disk, transformers below 5.20 expects the input on the meta device.
    r"You are calling .generate\(\) .* model is on meta": UserWarning,
}


def _quiet_libraries() -> None:
    for name in _IDLE_RECORDS:
        logging.getLogger(name).addFilter(_is_of_use)
    for message, category in _IDLE_WARNINGS.items():
        warnings.filterwarnings("ignore", message=message, category=category)


def _is_of_use(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_IDLE_RECORDS[record.name])


_KEEPING_NOTHING = {"chat", "web", "serve"}  # commands that leave nothing to resume


def _say_why(end: SystemExit) -> None:
    """Print that the run can be resumed, in one process only."""
    if isinstance(end, train.Launched) or os.environ.get("RANK", "0") != "0":
        return
    if _KEEPING_NOTHING.intersection(sys.argv[1:2]):
        return
    if end.code == INTERRUPTED:
        print("longlora: interrupted; the same command resumes where it stopped", file=sys.stderr)
    elif end.code == TERMINATED:
        kept = getattr(end, "message", "ended")
        print(f"longlora: SIGTERM: {kept}; the same command resumes from there", file=sys.stderr)
