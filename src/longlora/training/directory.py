"""The folder of a run: what it holds, whether it can be resumed, and how it is never overwritten.

recipe.yaml        the recipe with every value spelled out
environment.json   versions, device, command line of every start
metrics.jsonl      a line per logged step
checkpoints/       checkpoint-N, the last ones
adapter/ or model/ what was trained; its presence means that the run has finished
"""

import json
import platform
import shutil
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from longlora.checkpoint import write_atomically
from longlora.config import Recipe, dump_recipe
from longlora.errors import ConfigError

_COMPLETE = "complete"
_PACKAGES = ("longlora", "torch", "transformers", "peft", "trl", "accelerate", "datasets")


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run, and its state on disk."""

    root: Path
    result: Path
    """Where the trained adapter, or the fully trained model, goes at the end."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The log of losses, one JSON object a line."""
        return self.root / "metrics.jsonl"

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end; what was begun after it is deleted."""
        found = sorted(self.checkpoints.glob("checkpoint-*"), key=_step_of)
        whole = [path for path in found if (path / _COMPLETE).exists()]
        for path in found:
            if path not in whole:
                shutil.rmtree(path)
        return whole[-1] if whole else None


def open_run(recipe: Recipe) -> RunDirectory:
    """Make the folder of a run, or find the one that an interrupted start of the same recipe left.

    Raises:
        ConfigError: the folder holds a finished run, a run of another recipe, or something else.
    """
    root = Path(recipe.output_dir).expanduser()
    run = RunDirectory(root=root, result=root / ("model" if recipe.tuning == "full" else "adapter"))
    recipe_file = root / "recipe.yaml"
    if run.result.exists():
        raise ConfigError(f"{root} holds a finished run; choose another output_dir, or delete it to train again")
    if recipe_file.exists():
        if run.last_checkpoint():  # else nothing was trained yet, and the recipe may have been mended
            _check_same_recipe(recipe, recipe_file)
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"output_dir={recipe.output_dir} exists and is not a run of longlora; choose another")
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    write_atomically(recipe_file, dump_recipe(recipe))
    _record_start(root / "environment.json")
    return run


def mark_complete(checkpoint: Path) -> None:
    """Note that a checkpoint has been written to its end."""
    (checkpoint / _COMPLETE).touch()


def _check_same_recipe(recipe: Recipe, recipe_file: Path) -> None:
    try:
        present = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{recipe_file} is damaged; choose another output_dir") from error
    wanted = yaml.safe_load(dump_recipe(recipe))
    changed = [key for key in wanted if key != "output_dir" and wanted[key] != present.get(key)]
    if changed:
        differences = ", ".join(f"{key}: {present.get(key)} -> {wanted[key]}" for key in changed)
        raise ConfigError(
            f"{recipe_file.parent} holds an unfinished run of another recipe ({differences}); choose another "
            "output_dir, or delete it"
        )


def _record_start(path: Path) -> None:
    """Add this start to the run's list of starts."""
    try:
        starts: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        starts = []
    starts.append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in _PACKAGES},
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
            "threads": torch.get_num_threads(),
        }
    )
    write_atomically(path, json.dumps(starts, indent=2) + "\n")


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
