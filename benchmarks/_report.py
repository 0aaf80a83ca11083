"""Provenance of benchmark results, and the files that all reports share: CSV and Markdown."""

import csv
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The origin of results, with enough detail to judge and to reproduce them."""

    command: str
    device: str
    threads: int
    versions: str
    date: str
    commit: str
    load: str
    """Load average over one minute, at the start and at the end."""


def provenance(device: torch.device, packages: Sequence[str] = ("torch",)) -> Provenance:
    """Describe this process: its command line, its machine (without the host name) and its software versions."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(REPOSITORY).as_posix() if script.is_relative_to(REPOSITORY) else script.name
    return Provenance(
        command=shlex.join(["python", name, *sys.argv[1:]]),
        device=device_name(device),
        threads=torch.get_num_threads(),
        versions=", ".join([f"Python {platform.python_version()}", *(f"{each} {version(each)}" for each in packages)]),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commit=commit(),
        load=_load(),
    )


def finished(origin: Provenance) -> Provenance:
    """Add the load at the end: if it exceeds this process's threads, the machine was shared and times are rough."""
    return replace(
        origin, load=f"{origin.load} at the start, {_load()} at the end, {origin.threads} threads of it ours"
    )


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def device_name(device: torch.device) -> str:
    """Return the GPU's model, or the processor's with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [
            line.split(":", 1)[1] for line in information.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0].strip() if names else model
    return f"{model}, {os.cpu_count()} cores ({torch.backends.cpu.get_cpu_capability()})"


def commit() -> str:
    """Return the commit that is checked out, and whether files other than results differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return git("rev-parse", "--short=10", "HEAD") + (", with changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_csv(path: Path, rows: Sequence[object], origin: Provenance) -> None:
    """Write dataclasses of one type as rows, below the origin in lines that begin with #."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in asdict(origin).items())
        writer = csv.DictWriter(file, [field.name for field in fields(rows[0])], lineterminator="\n")  # type: ignore[arg-type]
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)  # type: ignore[call-overload]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table whose first column is text and whose other columns are numbers."""
    alignment = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, alignment, *rows))


def write_markdown(path: Path, title: str, sections: Mapping[str, str], origin: Provenance) -> None:
    """Write a page: the title, sections by heading (first one with an empty heading), and the origin."""
    parts = [f"# {title}"]
    for heading, text in sections.items():
        parts += [f"## {heading}", text] if heading else [text]
    described = "\n".join(
        f"- {name}: {f'`{value}`' if name == 'command' else value}" for name, value in asdict(origin).items()
    )
    path.write_text("\n\n".join([*parts, "## Where the numbers come from", described]) + "\n", encoding="utf-8")


def caption(origin: Provenance) -> str:
    """Return the origin as three lines, to be put below a picture."""
    return (
        f"{origin.device}, {origin.threads} threads · {origin.versions}\n"
        f"{origin.date} · commit {origin.commit} · load {origin.load}\n{origin.command}"
    )
