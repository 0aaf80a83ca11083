"""Folders as evaluations and runs leave them, made by the code that writes the real ones, with scores as told."""

import json
import os
import random
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from longlora.evaluation.questions import FinishedTrial, RetrievalTest, trial_grid
from longlora.evaluation.results import Harness, LossByPosition, PerplexityByLength, SuiteRecord
from longlora.evaluation.retrieval import summarise
from longlora.evaluation.short_context import Losses, compare_losses
from longlora.evaluation.text_results import Perplexity, PositionLoss

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
LENGTHS = (1024, 2048, 4096, 8192)
PROVENANCE = {
    "date": "2026-11-24T12:00:00+00:00",
    "command": "longlora eval MODEL --suite full",
    "device": "CPU (x86_64)",
    "packages": {"torch": "2.13.0"},
}

RUN_END = datetime.fromisoformat("2026-01-01T10:24:00+00:00").timestamp()


def never(*_: Any) -> Any:
    raise AssertionError("nothing is asked here")


def write_retrieval(
    folder: Path,
    model: str,
    shares: Mapping[int, float],
    *,
    test: str = "needle",
    weights: str = "abc",
    command: str = PROVENANCE["command"],
    **settings: Any,
) -> None:
    """A test in which the first trials of each depth were answered right, the share of them as told for the length."""
    if test == "recall":
        settings = {"num_pairs": 8} | settings
    num_choices = settings.get("num_pairs", 0)
    definition = RetrievalTest(
        name=test, ask=never, settings=settings, num_choices=num_choices, has_depths=test != "topics"
    )
    depths = DEPTHS if definition.has_depths else [None]
    num_trials = 50 // len(depths)
    grid = trial_grid(test, lengths=shares, depths=depths, num_trials=num_trials, seed=0)
    trials = []
    for trial in grid:
        right = float(trial.number < round(num_trials * shares[trial.length]))
        scores = {"generated": right, "found": right}
        if test == "recall":
            scores |= {"chosen": max(right, float(trial.number < 4)), "rank": 2 - right, "margin": right - 0.5}
        trials.append(
            FinishedTrial(
                **trial._asdict(), num_tokens=trial.length - 9, distance=7, expected=["1"], answer="1", scores=scores
            )
        )
    result = summarise(
        trials,
        definition,
        bar=0.8,
        settings={"test": test, "model": model, "weights": weights, "seed": 0} | settings,
        provenance=PROVENANCE | {"command": command},
    )
    result.write(folder)


def write_curves(folder: Path, model: str, *, level: float, rises_after: int, context: int = 8192) -> None:
    """Perplexity and loss by position that fall until a place and rise behind it."""
    noise = random.Random(0)
    values = {
        length: Perplexity(
            perplexity=level * (2.5 if length > rises_after else 1 - 0.04 * index),
            loss=1.0,
            num_tokens=4096,
            num_windows=16,
            standard_error=0.02,
        )
        for index, length in enumerate(LENGTHS)
    }
    PerplexityByLength(
        model=model,
        weights="abc",
        context=context,
        protocol="same-targets",
        data="books",
        perplexity=values,
        settings={"stride": 256},
        provenance=PROVENANCE,
    ).write(folder / "perplexity")
    buckets = [
        PositionLoss(
            start=1 + 256 * index,
            end=257 + 256 * index,
            loss=2 + level / 30 / (1 + index) + (0.8 if 256 * index >= rises_after else 0) + noise.gauss(0, 0.01),
            standard_error=0.02,
            num_tokens=1000,
        )
        for index in range(context // 256)
    ]
    curve = LossByPosition(
        model=model, length=context, context=context, num_windows=12, curve=buckets, provenance=PROVENANCE
    )
    curve.write(folder / "positions")  # without its picture


def write_run(folder: Path, *, seed: int = 0, num_steps: int = 200) -> None:
    """A training run that was resumed after 60 % of its steps: TRL's count of tokens began anew there."""
    noise = random.Random(seed)
    folder.mkdir(parents=True)
    recipe = {
        "model_name_or_path": "meta-llama/Llama-2-7b-hf",
        "context_length": 8192,
        "attention": {"pattern": "s2", "dense_finish": 0.2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    resumed = round(0.6 * num_steps)
    with (folder / "metrics.jsonl").open("w") as log:
        for step in range(1, num_steps + 1):
            loss = 2.2 + 1.5 / (1 + step / 10) + noise.gauss(0, 0.05)
            count = 8192 * (step if step <= resumed else step - resumed)
            log.write(json.dumps({"step": step, "loss": loss, "num_tokens": float(count)}) + "\n")
    starts = [
        {"time": "2026-01-01T00:00:00+00:00", "command": ["longlora", "train", "x.yaml"], "device": "NVIDIA H100"}
    ]
    (folder / "environment.json").write_text(json.dumps(starts))
    os.utime(folder / "metrics.jsonl", (RUN_END, RUN_END))


def write_against_base(folder: Path, model: str, base: str, *, difference: float, weights: str = "abc") -> None:
    """A model whose losses at 4,096 tokens differ from its base's by some nats, and a suite that left something out."""
    losses = np.linspace(2, 3, 16)
    result = compare_losses(
        Losses(base, "base", "the same", losses),
        Losses(model, weights, "the same", losses + np.linspace(0.9, 1.1, 16) * difference),
        length=4096,
        stride=256,
        settings={"data": "books"},
    )
    result.model_copy(update={"provenance": PROVENANCE}).write(folder / "short")
    record = SuiteRecord(
        model=model,
        weights=weights,
        context=8192,
        settings={},
        lengths=[1024],
        left_out=["topics at 8 tokens"],
        provenance=PROVENANCE,
    )
    record.write(folder)


def write_harness(folder: Path, model: str, scores: Mapping[str, float], *, weights: str = "abc") -> None:
    """Scores of tasks, each with an error of 0.03."""
    metrics = {task: {"acc": {"value": value, "standard_error": 0.03}} for task, value in scores.items()}
    content = {
        "model": model,
        "weights": weights,
        "context": 8192,
        "settings": {"limit": 100},
        "tasks": {task: {"metrics": values, "num_samples": 100} for task, values in metrics.items()},
        "provenance": PROVENANCE,
    }
    Harness.model_validate(content).write(folder)
