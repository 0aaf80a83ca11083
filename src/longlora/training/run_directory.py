"""The folder of a run: what it contains, whether it can be resumed, and what protects it from being overwritten.

recipe.yaml        the recipe with every value spelled out
environment.json   versions, device, processes, command line of every start
data.json          digests of the training rows and of the held-out rows
metrics.jsonl      one line per logged step and per validation
checkpoints/       the last checkpoint-N, each sealed by its digests.json (`checkpoints.py` writes them)
lock               held while a process works here
adapter/ or model/ what was trained; if it exists, training has finished, and the rest is made from it
summary.json       losses, speed and memory, compared with the plan
curves.png         loss, validation loss and learning rate over the steps
samples.md         held-out questions with the model's answers (fine-tuning)
merged/            the adapter merged into its base, if `longlora train` did the run

Damaged parts are set aside as `damaged-…` with a warning, or stop the start with a message.
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

from longlora.config import Recipe, dump_recipe, read_yaml
from longlora.errors import CheckpointError, ConfigError, DataError
from longlora.support.digests import find_damage, is_sealed
from longlora.support.files import claim, read_json, remove_partial, write_atomically
from longlora.support.journal import json_line
from longlora.support.machine import package_versions

logger = logging.getLogger("longlora")

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Only their product with the number of processes matters: the rows per optimizer step.
_BATCH_KEYS = ("per_device_train_batch_size", "gradient_accumulation_steps")


class RunDirectory:
    """Paths of a recipe's run, and its state on disk; `result` is where the trained adapter or model goes."""

    resumes_from: Path | None = None
    """The checkpoint that this start resumes from, found intact when the run was opened."""

    def __init__(self, recipe: Recipe) -> None:
        self.root = root = Path(recipe.output_dir).expanduser()
        self.result = root / ("model" if recipe.tuning == "full" else "adapter")
        self.recipe, self.starts, self.metrics = root / "recipe.yaml", root / "environment.json", root / "metrics.jsonl"
        self.data, self.checkpoints, self.merged = root / "data.json", root / "checkpoints", root / "merged"
        self.summary, self.curves, self.samples = root / "summary.json", root / "curves.png", root / "samples.md"

    def remove_former(self) -> None:
        """Delete what was made from an earlier result that no longer exists."""
        for path in (self.summary, self.curves, self.samples):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.merged, ignore_errors=True)

    def finished_checkpoints(self) -> list[Path]:
        """Return the completely written checkpoints in order of steps, without checking them for damage."""
        return [path for path in _numbered(self.checkpoints) if is_sealed(path)]


def check_output(recipe: Recipe, *, merge_follows: bool) -> list[str]:
    """Check that a run can start or resume in its output directory, and return what a finished one still lacks.

    Raises:
        ConfigError: it holds a finished run that lacks nothing, a finished run of another recipe, or something else.
    """
    run = RunDirectory(recipe)
    if not run.result.exists():
        there = set(run.root.iterdir()) if run.root.is_dir() else {run.root} if run.root.exists() else set()
        if not run.recipe.exists() and there - {run.checkpoints, run.root / "lock"}:
            raise ConfigError(f"output_dir={recipe.output_dir} exists and is not a longlora run; choose another")
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
    """Create the folder of a run, or reopen that of an interrupted run of the same recipe, and lock it meanwhile.

    A run whose training has finished is opened as long as something beside the result is missing: with `merge_follows`,
    that includes a merged model. The lock is released when this process ends, however it ends.

    Raises:
        ConfigError: the folder holds a finished run, a run of another recipe or something else, or is in use.
        CheckpointError: none of its checkpoints is intact.
    """
    run = RunDirectory(recipe)
    missing = check_output(recipe, merge_follows=merge_follows)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    refusal = f"{run.root} is in use by another training process; wait for it or end it, or choose another output_dir"
    with claim(run.root / "lock", refusal):
        if missing:
            logger.info("%s is already trained; creating what is missing: %s", run.result, ", ".join(missing))
        else:
            _note_start(recipe, run, num_processes, strategy)
        yield run


def _note_start(recipe: Recipe, run: RunDirectory, num_processes: int, strategy: str) -> None:
    starts = _read_starts(run.starts)
    run.resumes_from = _newest_whole(run.checkpoints)
    if run.resumes_from:  # otherwise nothing was trained yet, and the recipe may have been corrected
        _check_same_recipe(recipe, num_processes, run.recipe, starts[-1]["processes"] if starts else num_processes)
    remove_partial(run.result)
    write_atomically(run.recipe, dump_recipe(recipe))
    starts.append({**_environment(), "processes": num_processes, "strategy": strategy})
    write_atomically(run.starts, json.dumps(starts, indent=2) + "\n")


def keep_to_data(run: RunDirectory, rows: Mapping[str, Any]) -> None:
    """Record what the run trains on, as JSON; if it resumes from a checkpoint, check that the data is still the same.

    Raises:
        DataError: the data has changed.
        CheckpointError: the record cannot be read.
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
    """Read the lines of `metrics.jsonl`; if some cannot be used, set the file aside and keep the others."""
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")  # an interruption may leave a partial line at the end
    read = [_metrics_line(line) for line in lines]
    kept = [line for line in read if line is not None]
    if len(kept) < len(lines):
        _set_aside(path, f"{len(lines) - len(kept)} of its {len(lines)} lines cannot be used; the others are kept")
        write_atomically(path, "".join(map(json_line, kept)))
    return kept


def step_of(checkpoint: Path) -> int:
    """Return the number of optimizer steps done when a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _numbered(checkpoints: Path) -> list[Path]:
    found = [path for path in checkpoints.glob("*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def _newest_whole(checkpoints: Path) -> Path | None:
    """Return the newest intact checkpoint; delete incomplete ones, and set damaged ones aside.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged; they are left as they are.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(_numbered(checkpoints)):
        if not is_sealed(path):
            shutil.rmtree(path)
        elif reason := find_damage(path):
            damaged[path] = reason
        else:
            for other, reason in damaged.items():
                _set_aside(other, f"{reason}; {path.name} is intact")
            return path
    if damaged:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
        raise CheckpointError(
            f"no checkpoint in {checkpoints} is intact ({reasons}): restore one from a copy, or delete the folder to "
            "train again from the beginning"
        )
    return None


def _set_aside(path: Path, reason: str) -> None:
    """Rename what is damaged, so nothing reads it again."""
    aside = path.with_name(f"damaged-{path.name}")
    if aside.is_dir():
        shutil.rmtree(aside)
    os.replace(path, aside)
    logger.warning("%s is damaged and was set aside as %s: %s", path, aside.name, reason)


def _read_starts(path: Path) -> list[dict[str, Any]]:
    """Return the records of earlier starts, each with its `processes`; none if they are damaged."""
    if not path.exists():
        return []
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(start["processes"], int) for start in starts):
            return list(starts)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    _set_aside(path, "a new record of starts begins")
    return []


def _metrics_line(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
        numbers = [values[name] for name in ("loss", "eval_loss", "learning_rate") if name in values]
        is_usable = isinstance(values["step"], int) and all(isinstance(number, (int, float)) for number in numbers)
        json_line(values).encode()  # half a surrogate pair is valid JSON, but cannot be written
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
    """List the differences from a recipe file, apart from the folder and how a step's rows are divided."""
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
    """Describe the machine and the software, for the record of a start."""
    import torch  # the rest of this file is used before torch is loaded

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": package_versions("longlora", "torch", "transformers", "peft", "trl", "accelerate", "datasets"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
    }
