"""The command `longlora doctor`: what this machine has, and what is missing for which use."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longlora import __version__
from longlora.errors import LongLoRAError, first_line

if TYPE_CHECKING:
    from packaging.requirements import Requirement

GIB = 2**30
EXTRAS = {
    "corpus": "training data from documents",
    "docling": "PDF conversion by models: slower, but better with columns and tables",
    "eval": "LongBench and RULER",
    "gpu": "4-bit bases, 8-bit optimizers, DeepSpeed",
    "serve": "an OpenAI-compatible server",
    "track": "curves in trackio, TensorBoard or Weights & Biases",
    "web": "chat in a browser",
}
_SHOWN = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
# Environment variables that affect longlora; importing their modules would need packages that may be missing.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "LONGLORA_FULL_ATTENTION_INTERVAL",
    "LONGLORA_GROUP_SIZE",
    "LONGLORA_SHIFT",
    "LONGLORA_SINK_TOKENS",
    "LONGLORA_VERIFY",
)
SECRETS = ("LONGLORA_API_KEY", "LONGLORA_WEB_PASSWORD")
_WRITTEN_BYTES = 2**26


@dataclass(frozen=True)
class DoctorLine:
    """One line of the report."""

    name: str
    state: str
    remedy: str = ""
    is_fault: bool = False
    """Whether longlora cannot run until this is fixed; other remedies are optional."""


def doctor(
    folder: Annotated[
        Path, typer.Option(help="Folder for runs; a write test puts 64 MiB there and deletes it.")
    ] = Path(),
) -> None:
    """Report what this machine has and what is missing; exits with 1 if longlora cannot run."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    faults = 0
    for title, findings in (
        ("Versions", versions()),
        ("Devices", devices()),
        ("Extras", extras()),
        ("Folders", folders(folder)),
        ("Environment", environment()),
    ):
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in findings:
            faults += finding.is_fault
            text = Text(finding.state)
            if finding.remedy:
                text.append(f"\n→ {finding.remedy}", style="red" if finding.is_fault else "yellow")
            table.add_row(f"  {finding.name}", text)
        if table.row_count:
            console.print(title, style="bold")
            console.print(table)
    if faults:
        console.print(f"\n{faults} to fix before longlora can run here", style="bold red")
        raise typer.Exit(1)


def versions() -> Iterator[DoctorLine]:
    """Report Python and the required packages: the main ones, and all that are missing or too old."""
    yield DoctorLine(
        "longlora", f"{__version__} on Python {platform.python_version()}, {platform.platform(terse=True)}"
    )
    if not _needs():
        yield DoctorLine("packages", "not checked: longlora runs from a folder and is not installed", "pip install .")
    for needed, found, fits in _requirements(""):
        if not fits:
            state = f"{found or 'not installed'}, needs {needed.specifier}"
            yield DoctorLine(needed.name, state, f"pip install '{needed.name}{needed.specifier}'", is_fault=True)
        elif needed.name in _SHOWN:
            yield DoctorLine(needed.name, found)


def devices() -> Iterator[DoctorLine]:
    """Report the GPUs, with the kernel that S²-Attn uses on each, the CPU and the memory."""
    import psutil
    import torch

    from longlora.attention.backends import AttentionRequest, choose_backend

    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        capability = torch.cuda.get_device_capability(index)
        request = AttentionRequest(
            device="cuda",
            dtype=torch.bfloat16,
            head_dim=128,
            value_dim=128,
            needs_gradients=True,
            capability=capability,
        )
        state = f"{torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        yield DoctorLine(
            f"cuda:{index}",
            f"{state}; S²-Attn by {choose_backend('auto', request)}",
            "" if bfloat16 else "it has no bfloat16: set dtype: float16 or float32 in the recipe",
        )
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi")
        remedy = "an NVIDIA driver is installed: install a CUDA build of torch (https://pytorch.org)" if driver else ""
        yield DoctorLine("GPU", f"none that torch {torch.__version__} can use", remedy)
    memory = psutil.virtual_memory()
    yield DoctorLine("CPU", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    yield DoctorLine("memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free")


def extras() -> Iterator[DoctorLine]:
    """Report the purpose of each extra, and whether it is completely installed."""
    for extra, purpose in EXTRAS.items():
        missing = [needed.name for needed, _, fits in _requirements(extra) if not fits]
        state = f"missing ({', '.join(missing)})" if missing else "installed"
        yield DoctorLine(extra, f"{state}: {purpose}", f"pip install 'longlora[{extra}]'" if missing else "")


def folders(folder: Path) -> Iterator[DoctorLine]:
    """Report the folders of models, token caches and runs: their free space, and the write speed for runs."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from longlora.support.machine import user_cache

    yield _room("hub cache", Path(HF_HUB_CACHE), "set HF_HOME to a writable folder")
    try:
        yield _room("token cache", user_cache(), "set XDG_CACHE_HOME to a writable folder")
    except LongLoRAError as error:
        yield DoctorLine("token cache", "none", str(error), is_fault=True)
    runs = _room("runs", folder, "choose another with --folder")
    if not runs.is_fault:
        try:
            runs = DoctorLine("runs", f"{runs.state}, written at {_write_speed(folder):,.0f} MB/s")
        except OSError as error:
            runs = DoctorLine(
                "runs", f"{folder.absolute()}: {first_line(error)}", "choose another with --folder", is_fault=True
            )
    yield runs


def environment() -> Iterator[DoctorLine]:
    """Report the environment variables that are set: their values, except those of secrets."""
    for name in (*VARIABLES, *SECRETS):
        if name in os.environ:
            yield DoctorLine(name, "set" if name in SECRETS else os.environ[name])


def _needs() -> list[str]:
    try:
        return importlib.metadata.requires("longlora") or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _requirements(extra: str) -> Iterator[tuple["Requirement", str, bool]]:
    """Yield what longlora or an extra needs, the installed version, empty if there is none, and whether it fits."""
    from packaging.requirements import Requirement

    for needed in map(Requirement, _needs()):
        if needed.marker.evaluate({"extra": extra}) if needed.marker else not extra:
            try:
                found = importlib.metadata.version(needed.name)
            except importlib.metadata.PackageNotFoundError:
                found = ""
            yield needed, found, found != "" and needed.specifier.contains(found, prereleases=True)


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _room(name: str, folder: Path, remedy: str) -> DoctorLine:
    folder = folder.absolute()
    there = _existing(folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        return DoctorLine(name, f"{folder} cannot be written", remedy, is_fault=True)
    return DoctorLine(name, f"{folder}, {shutil.disk_usage(there).free / GIB:.1f} GiB free")


def _write_speed(folder: Path) -> float:
    """Return the write speed to disk in MB/s, measured with a temporary file."""
    block = os.urandom(2**20)  # not compressible
    with tempfile.TemporaryFile(dir=_existing(folder.absolute())) as file:
        began = time.perf_counter()
        for _ in range(_WRITTEN_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return _WRITTEN_BYTES / 1e6 / (time.perf_counter() - began)
