"""A training run, as its folder tells it: what was trained, how the loss fell, and what that took."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from longlora.errors import DataError

RECIPE_FILE, METRICS_FILE, STARTS_FILE = "recipe.yaml", "metrics.jsonl", "environment.json"


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A training run: its settings, its losses and its cost."""

    path: Path
    recipe: dict[str, Any]
    steps: list[int]
    losses: list[float]
    """Nats per token at each of the steps."""

    num_tokens: int | None
    hours: float | None
    """From the first start to the last write of the log, pauses between two starts included."""

    starts: list[dict[str, Any]]

    @property
    def device(self) -> str:
        """What it was trained on, as far as the last start says."""
        if not self.starts:
            return ""
        device, processes = str(self.starts[-1].get("device", "")), int(self.starts[-1].get("processes", 1))
        return f"{processes} × {device}" if processes > 1 else device


def is_run(folder: Path) -> bool:
    """Tell the folder of a training run from others."""
    return (folder / RECIPE_FILE).is_file() and (folder / METRICS_FILE).is_file()


def read_run(folder: Path) -> TrainingRun:
    """Read the folder of a run, finished or not.

    Raises:
        DataError: a file in it is damaged.
    """
    try:
        recipe = dict(yaml.safe_load((folder / RECIPE_FILE).read_text(encoding="utf-8")))
        lines = (folder / METRICS_FILE).read_text(encoding="utf-8").split("\n")[:-1]
        logged = [values for line in lines if line and "loss" in (values := json.loads(line))]
        starts_file = folder / STARTS_FILE
        starts = list(json.loads(starts_file.read_text(encoding="utf-8"))) if starts_file.exists() else []
        return TrainingRun(
            path=folder,
            recipe=recipe,
            steps=[int(values["step"]) for values in logged],
            losses=[float(values["loss"]) for values in logged],
            num_tokens=_tokens_of([values["num_tokens"] for values in logged if "num_tokens" in values]),
            hours=_hours(starts, (folder / METRICS_FILE).stat().st_mtime),
            starts=starts,
        )
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{folder} holds no readable training run ({type(error).__name__}: {error})") from error


def _tokens_of(counts: list[float]) -> int | None:
    """Add up TRL's running count, which begins anew when a run is resumed."""
    if not counts:
        return None
    total, before = 0.0, 0.0
    for count in counts:
        total += count - before if count >= before else count
        before = count
    return round(total)


def _hours(starts: list[dict[str, Any]], last_write: float) -> float | None:
    if not starts or "time" not in starts[0]:
        return None
    hours = (last_write - datetime.fromisoformat(starts[0]["time"]).timestamp()) / 3600
    # A copied folder has the time of its copying, which may lie anywhere; before the start it is surely wrong.
    return hours if hours >= 0 else None
