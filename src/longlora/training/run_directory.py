"""The folder of a run: what it holds, whether it can be resumed, and how it is never overwritten.

recipe.yaml        the recipe with every value spelled out
environment.json   versions, device, processes, command line of every start
metrics.jsonl      a line per logged step and per measurement on the validation data
checkpoints/       checkpoint-N, the last ones
lock               held while a process is at work here
adapter/ or model/ what was trained; its presence means that the training has finished, and the rest is made from it
summary.json       losses, speed and memory, beside what was planned
curves.png         loss, validation loss and learning rate over the steps
samples.md         held-out questions with the model's answers (fine-tuning)
merged/            the adapter folded into its base, where `longlora train` did the run
"""

import json
import logging
import math
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from longlora.config import Recipe, dump_recipe
from longlora.errors import ConfigError
from longlora.models.checkpoint import Extension, write_extension
from longlora.support.files import flush, remove_partial, write_atomically
from longlora.support.packages import package_versions

logger = logging.getLogger("longlora")

_COMPLETE = "complete"
# Their product with the number of processes is what matters: the rows of an optimizer step.
_BATCH_KEYS = ("per_device_train_batch_size", "gradient_accumulation_steps")


class RunDirectory:
    """Paths of a recipe's run, and its state on disk; `result` is where what was trained goes at the end."""

    def __init__(self, recipe: Recipe) -> None:
        self.root = root = Path(recipe.output_dir).expanduser()
        self.result = root / ("model" if recipe.tuning == "full" else "adapter")
        self.recipe, self.starts, self.metrics = root / "recipe.yaml", root / "environment.json", root / "metrics.jsonl"
        self.checkpoints, self.merged = root / "checkpoints", root / "merged"
        self.summary, self.curves, self.samples = root / "summary.json", root / "curves.png", root / "samples.md"

    def remove_former(self) -> None:
        """Delete what was made from a former result, which is not there any more."""
        for path in (self.summary, self.curves, self.samples):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.merged, ignore_errors=True)

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end; what was begun after it is deleted."""
        found = sorted(self.checkpoints.glob("checkpoint-*"), key=step_of)
        whole = [path for path in found if (path / _COMPLETE).exists()]
        for path in found:
            if path not in whole:
                shutil.rmtree(path)
        return whole[-1] if whole else None


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
    """
    run = RunDirectory(recipe)
    missing = check_output(recipe, merge_follows=merge_follows)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(run.root / "lock", timeout=0).acquire()
    except Timeout:
        raise ConfigError(
            f"{run.root} is in use by another process that trains there; wait for it or end it, or choose another "
            "output_dir"
        ) from None
    with lock:
        if missing:
            logger.info("%s is trained already; what is missing beside it is made: %s", run.result, ", ".join(missing))
        else:
            _note_start(recipe, run, num_processes, strategy)
        yield run


def _note_start(recipe: Recipe, run: RunDirectory, num_processes: int, strategy: str) -> None:
    try:
        starts = json.loads(run.starts.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        starts = []
    if run.recipe.exists() and run.last_checkpoint():  # else nothing was trained yet, and it may have been mended
        processes_before = starts[-1].get("processes", 1) if starts else 1
        _check_same_recipe(recipe, num_processes, run.recipe, processes_before)
    remove_partial(run.result)
    write_atomically(run.recipe, dump_recipe(recipe))
    starts.append({**_environment(), "processes": num_processes, "strategy": strategy})
    write_atomically(run.starts, json.dumps(starts, indent=2) + "\n")


def finish_checkpoint(checkpoint: Path, extension: Extension) -> None:
    """Make a checkpoint readable as an adapter or model, and mark it as written to its end.

    All of it reaches the disk before the mark does, so that the mark holds after a power failure too.
    """
    write_extension(checkpoint, extension)
    for path in checkpoint.rglob("*"):
        if path.is_file():
            flush(path)
    (checkpoint / _COMPLETE).touch()
    flush(checkpoint)


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps done when a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _read_recipe(recipe_file: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{recipe_file} is damaged; choose another output_dir") from error


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
    groups_before = processes_before // present.get("sequence_parallel_size", 1)
    rows_before = groups_before * math.prod(present.get(key, 0) for key in _BATCH_KEYS)
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
