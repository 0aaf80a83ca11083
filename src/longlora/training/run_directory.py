"""The folder of a run: what it holds, whether it can be resumed, and how it is never overwritten.

recipe.yaml        the recipe with every value spelled out
environment.json   versions, device, processes, command line of every start
data.json          digests of the rows that it trains on and of those held out
metrics.jsonl      a line per logged step and per measurement on the validation data
checkpoints/       checkpoint-N, the last ones, each sealed by its digests.json (`checkpoints.py` writes them)
lock               held while a process is at work here
adapter/ or model/ what was trained; its presence means that the training has finished, and the rest is made from it
summary.json       losses, speed and memory, beside what was planned
curves.png         loss, validation loss and learning rate over the steps
samples.md         held-out questions with the model's answers (fine-tuning)
merged/            the adapter folded into its base, where `longlora train` did the run

What is damaged of it is set aside as `damaged-…` with a warning, or ends the start with a message.
"""

import json
import logging
import math
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from longlora.config import Recipe, dump_recipe, read_yaml
from longlora.errors import CheckpointError, ConfigError, DataError
from longlora.support.digests import find_damage, is_sealed
from longlora.support.files import read_json, remove_partial, write_atomically
from longlora.support.journal import json_line
from longlora.support.packages import package_versions

logger = logging.getLogger("longlora")

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Their product with the number of processes is what matters: the rows of an optimizer step.
_BATCH_KEYS = ("per_device_train_batch_size", "gradient_accumulation_steps")


class RunDirectory:
    """Paths of a recipe's run, and its state on disk; `result` is where what was trained goes at the end."""

    resumes_from: Path | None = None
    """The checkpoint that this start goes on from, found whole when the run was opened."""

    def __init__(self, recipe: Recipe) -> None:
        self.root = root = Path(recipe.output_dir).expanduser()
        self.result = root / ("model" if recipe.tuning == "full" else "adapter")
        self.recipe, self.starts, self.metrics = root / "recipe.yaml", root / "environment.json", root / "metrics.jsonl"
        self.data, self.checkpoints, self.merged = root / "data.json", root / "checkpoints", root / "merged"
        self.summary, self.curves, self.samples = root / "summary.json", root / "curves.png", root / "samples.md"

    def remove_former(self) -> None:
        """Delete what was made from a former result, which is not there any more."""
        for path in (self.summary, self.curves, self.samples):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.merged, ignore_errors=True)

    def finished_checkpoints(self) -> list[Path]:
        """The checkpoints that were written to their end, by their steps; whether they are still whole is not asked."""
        return [path for path in _numbered(self.checkpoints) if is_sealed(path)]


def check_output(recipe: Recipe, *, merge_follows: bool) -> list[str]:
    """Make sure that a run may begin, or be resumed, in its output directory; name what a finished one still lacks.

    Raises:
        ConfigError: it holds a finished run that lacks nothing, a finished run of another recipe, or something else.
    """
    run = RunDirectory(recipe)
    if not run.result.exists():
        there = set(run.root.iterdir()) if run.root.is_dir() else {run.root} if run.root.exists() else set()
        if not run.recipe.exists() and there - {run.checkpoints, run.root / "lock"}:
            raise ConfigError(f"output_dir={recipe.output_dir} exists and is not a run of longlora; choose another")
        return []
    wanted = [run.curves, *[run.merged] * merge_follows, *[run.samples] * recipe.samples_answers, run.summary]
    missing = [path.name for path in wanted if not path.exists()]
    changed = _changes(recipe, _read_recipe(run.recipe)) if run.recipe.exists() else []
    if changed or not missing:
        of_another = f" of another recipe ({', '.join(changed)})" if changed else ""
        raise ConfigError(
            f"{run.root} holds a finished run{of_another}; choose another output_dir, or delete it to train again"
        )
    return missing


@contextmanager
def open_run(
    recipe: Recipe, *, num_processes: int = 1, strategy: str = "single", merge_follows: bool = False
) -> Iterator[RunDirectory]:
    """Make the folder of a run, or find the one that an interrupted start of the same recipe left; hold it meanwhile.

    A run whose training has finished is opened as long as something is missing beside the result: with `merge_follows`
    a merged model, too. The system lets go of the folder when this process ends, however it ends.

    Raises:
        ConfigError: the folder holds a finished run, a run of another recipe, something else, or is in use.
        CheckpointError: none of its checkpoints is whole.
    """
    run = RunDirectory(recipe)
    missing = check_output(recipe, merge_follows=merge_follows)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(run.root / "lock", timeout=0).acquire()
    except Timeout:
        raise ConfigError(
            f"{run.root} is in use by another training process; wait for it or end it, or choose another output_dir"
        ) from None
    with lock:
        if missing:
            logger.info("%s is already trained; creating what is missing: %s", run.result, ", ".join(missing))
        else:
            _note_start(recipe, run, num_processes, strategy)
        yield run


def _note_start(recipe: Recipe, run: RunDirectory, num_processes: int, strategy: str) -> None:
    starts = _read_starts(run.starts)
    run.resumes_from = _newest_whole(run.checkpoints)
    if run.resumes_from:  # else nothing was trained yet, and the recipe may have been mended
        _check_same_recipe(recipe, num_processes, run.recipe, starts[-1]["processes"] if starts else num_processes)
    remove_partial(run.result)
    write_atomically(run.recipe, dump_recipe(recipe))
    starts.append({**_environment(), "processes": num_processes, "strategy": strategy})
    write_atomically(run.starts, json.dumps(starts, indent=2) + "\n")


def keep_to_data(run: RunDirectory, rows: Mapping[str, Any]) -> None:
    """Note what the run trains on, as JSON; where it goes on from a checkpoint, see that this is what it trained on.

    Raises:
        DataError: it is not.
        CheckpointError: the note cannot be read.
    """
    if run.resumes_from is not None:
        there = read_json(run.data)
        changed = [f"{name} {there.get(name)} -> {found}" for name, found in rows.items() if there.get(name) != found]
        if changed:
            raise DataError(
                f"the data is not what the run in {run.root} has been trained on ({'; '.join(changed)}): put it back "
                f"as it was, choose another output_dir, or delete {run.checkpoints} to train again from the beginning"
            )
    write_atomically(run.data, json.dumps(rows, indent=2) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of `metrics.jsonl`; where some cannot be used the file is set aside, and the others are kept."""
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")  # what follows the last newline was torn by an interruption
    read = [_metrics_line(line) for line in lines]
    kept = [line for line in read if line is not None]
    if len(kept) < len(lines):
        _set_aside(path, f"{len(lines) - len(kept)} of its {len(lines)} lines cannot be used; the others are kept")
        write_atomically(path, "".join(map(json_line, kept)))
    return kept


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps done when a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _numbered(checkpoints: Path) -> list[Path]:
    found = [path for path in checkpoints.glob("*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def _newest_whole(checkpoints: Path) -> Path | None:
    """Find the newest checkpoint that is as it was written; delete what was cut short, set aside what is damaged.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged; they stay as they are.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(_numbered(checkpoints)):
        if not is_sealed(path):
            shutil.rmtree(path)
        elif reason := find_damage(path):
            damaged[path] = reason
        else:
            for other, reason in damaged.items():
                _set_aside(other, f"{reason}; {path.name} is whole")
            return path
    if damaged:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
        raise CheckpointError(
            f"no checkpoint in {checkpoints} is whole ({reasons}): put a copy of one back, or delete the folder to "
            "train again from the beginning"
        )
    return None


def _set_aside(path: Path, reason: str) -> None:
    """Give what is damaged a name under which nothing looks for it."""
    aside = path.with_name(f"damaged-{path.name}")
    if aside.is_dir():
        shutil.rmtree(aside)
    os.replace(path, aside)
    logger.warning("%s is damaged and was set aside as %s: %s", path, aside.name, reason)


def _read_starts(path: Path) -> list[dict[str, Any]]:
    """What earlier starts noted, each with its `processes`; nothing where that is damaged."""
    if not path.exists():
        return []
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(start["processes"], int) for start in starts):
            return list(starts)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    _set_aside(path, "the record of earlier starts begins anew")
    return []


def _metrics_line(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
        numbers = [values["step"], *(values[name] for name in ("loss", "eval_loss", "learning_rate") if name in values)]
        is_usable = all(isinstance(number, (int, float)) for number in numbers)
        json_line(values).encode()  # half a surrogate pair passes as JSON, but no file takes it
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return values if is_usable else None


def _read_recipe(recipe_file: Path) -> dict[str, Any]:
    try:
        return read_yaml(recipe_file)
    except ConfigError as error:
        raise ConfigError(
            f"{recipe_file} is missing or damaged; put it back as it was, or choose another output_dir"
        ) from error


def _changes(recipe: Recipe, present: Mapping[str, Any]) -> list[str]:
    """What differs from a recipe in a file, but for the folder and how a step's rows are divided."""
    wanted = yaml.safe_load(dump_recipe(recipe))
    passed_over = ("output_dir", "hardware", "sequence_parallel_size", *_BATCH_KEYS)
    return [
        f"{key}: {present.get(key)} -> {wanted[key]}"
        for key in wanted
        if key not in passed_over and wanted[key] != present.get(key)
    ]


def _check_same_recipe(recipe: Recipe, num_processes: int, recipe_file: Path, processes_before: int) -> None:
    present, wanted = _read_recipe(recipe_file), recipe.model_dump()
    changed = _changes(recipe, present)
    counts = [present.get(key) for key in _BATCH_KEYS]
    divided = present.get("sequence_parallel_size", 1)
    groups_before = processes_before // (divided if isinstance(divided, int) and divided > 0 else 1)
    rows_before = groups_before * math.prod(count if isinstance(count, int) else 0 for count in counts)
    rows = num_processes // recipe.sequence_parallel_size * math.prod(wanted[key] for key in _BATCH_KEYS)
    if rows != rows_before:
        changed.append(f"{' × '.join(_BATCH_KEYS)} × processes: {rows_before} -> {rows}")
    if changed:
        raise ConfigError(
            f"{recipe_file.parent} holds an unfinished run of another recipe ({', '.join(changed)}); choose another "
            "output_dir, or delete it"
        )


def _environment() -> dict[str, Any]:
    """What a start of a run notes of the machine and of the software."""
    import torch  # everything else here is looked at before torch is loaded

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": package_versions("longlora", "torch", "transformers", "peft", "trl", "accelerate", "datasets"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
    }
