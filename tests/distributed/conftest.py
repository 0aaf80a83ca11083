"""Runs of `longlora train` in processes of their own, on the CPU over gloo."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TrainCommand = Callable[..., list[str]]

# Two processes, an import of torch and transformers each, on a machine that may have other work.
TIMEOUT_SECONDS = 300


@pytest.fixture
def recipe_values(base_model: Path, text_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """64 -> 128 tokens, ten steps of two rows, LoRA+ on a model with tied embeddings."""
    return {
        "model_name_or_path": str(base_model),
        "output_dir": str(tmp_path / "one"),
        "context_length": 128,
        "max_steps": 10,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "gradient_accumulation_steps": 2,
        "save_steps": 4,
        "gradient_checkpointing": False,
        "data": {"source": str(text_folder), "cache_dir": str(tmp_path / "cache")},
    }


@pytest.fixture
def train_command(recipe_values: dict[str, Any], tmp_path: Path) -> TrainCommand:
    """Make the command that trains a recipe of those values with some changed, into a folder of that name."""

    def make(name: str, *options: str, **changes: Any) -> list[str]:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**recipe_values, "output_dir": str(tmp_path / name), **changes}))
        return [sys.executable, "-m", "longlora.cli", "train", str(path), *options]

    return make


def complete(command: list[str], status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment())
    assert done.returncode == status, done.stderr
    return done


def environment() -> dict[str, str]:
    """The environment of a shell that no launcher has started."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in launched}


def losses(run: Path) -> list[float]:
    """The losses of a run, which must have logged every step once, and those of validation behind them."""
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    entries = [entry for entry in logged if "loss" in entry]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["loss"] for entry in entries] + [entry["eval_loss"] for entry in logged if "eval_loss" in entry]
