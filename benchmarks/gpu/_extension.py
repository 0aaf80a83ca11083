"""The step `extend`: double the context of a real pretrained model with the library's own training, and evaluate it.

The arms use the same rows in the same order with the same positions (YaRN), and differ in their training attention: S²
as in the paper, with a sink token, with a dense finish, and full attention. For comparison, there are the base in its
own context and its new positions without training. All are evaluated with full attention: perplexity by length on the
same targets of held-out documents, and passkeys at the full length.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _session import DEVICE, OutOfTime, Row, Session, memory_held
from _training import now

from longlora.config import Recipe, parse_recipe
from longlora.data.document_rows import tokenize_documents
from longlora.data.sources import read_documents
from longlora.evaluation.perplexity import perplexity_by_length
from longlora.evaluation.retrieval import run_retrieval
from longlora.evaluation.retrieval_tests import passkey
from longlora.evaluation.subject import named_context
from longlora.models.load import (
    extended_config,
    load_config,
    load_for_inference,
    load_tokenizer,
    load_weights,
    model_source,
)
from longlora.tiny import TINY_MODEL
from longlora.tiny.stdlib import standard_library_files
from longlora.training.run import train

S2 = {"pattern": "s2"}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to extend the base; without an attention, nothing is trained."""

    attention: dict[str, Any] = field(default_factory=dict)
    extends: bool = True


ARMS = {
    "base": Arm(extends=False),
    "positions only": Arm(),
    "S², 1 sink token": Arm(attention=S2 | {"sink_tokens": 1}),
    "full": Arm(attention={"pattern": "full"}),
    "S²": Arm(attention=S2),
    "no shift, one layer of six dense": Arm(attention=S2 | {"shift": False, "full_attention_interval": 6}),
    "S², 1 sink token, last 40 % dense": Arm(attention=S2 | {"sink_tokens": 1, "dense_finish": 0.4}),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Settings shared by all arms."""

    model: str
    train: list[str]
    validation: list[str]
    steps: int
    context: int
    """Of the base, in tokens; the arms double it."""
    targets: int
    trials: int
    cache: Path
    """Of tokens."""

    @staticmethod
    def of(model: Path | None, texts: Path | None, cache: Path, *, dry: bool) -> "Task":
        """Return the task for a model and a folder with `*/train` and `*/validation`; dry, the tiny model and code."""
        if dry or model is None or texts is None:
            files = {split: standard_library_files(split) for split in ("train", "validation")}
            sizes = {"steps": 2, "targets": 64, "trials": 2}
        else:
            files = {split: sorted(texts.glob(f"*/{split}/*")) for split in ("train", "validation")}
            sizes = {"steps": 24, "targets": 4096, "trials": 10}
        name = TINY_MODEL if dry or model is None else str(model)
        paths = {split: [str(path) for path in found] for split, found in files.items()}
        return Task(model=name, context=named_context(name), cache=cache, **paths, **sizes)

    def recipe(self, arm: Arm, folder: Path) -> Recipe:
        """Return an arm's recipe."""
        return parse_recipe(
            {
                "model_name_or_path": self.model,
                "output_dir": str(folder / "run"),
                "context_length": 2 * self.context,
                "rope": {"rope_type": "yarn"},
                "data": {"source": self.train, "cache_dir": str(self.cache)},
                "attention": arm.attention or {"pattern": "full"},
                "max_steps": self.steps,
                "warmup_steps": 2,
                "learning_rate": 1e-4,
                "gradient_accumulation_steps": 1,
                "save_steps": self.steps,
                "dtype": "bfloat16" if DEVICE.type == "cuda" else "float32",
            }
        )


def run_extension(session: Session, model: Path | None, texts: Path | None) -> None:
    """Measure all arms in order."""
    with tempfile.TemporaryDirectory() as cache:
        run_arms(session, Task.of(model, texts, Path(cache), dry=session.dry))


def run_arms(session: Session, task: Task) -> None:
    """Measure the arms that have no row yet."""
    try:
        for name, arm in ARMS.items():
            case = f"{Path(task.model).name} {task.context} to {2 * task.context}: {name}"
            settings = {"model": Path(task.model).name, "arm": name, "steps": task.steps if arm.attention else 0}
            session.run(case, settings, partial(measure, arm, task))
    except OutOfTime:
        print("time is up")


def measure(arm: Arm, task: Task) -> Row:
    """Train an arm and evaluate the result."""
    with tempfile.TemporaryDirectory() as scratch:
        recipe, row = task.recipe(arm, Path(scratch)), {}
        if arm.attention:
            began = now()
            result = train(recipe)
            lines = (Path(recipe.output_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            row = {"seconds": round(now() - began, 1), "losses": [json.loads(line)["loss"] for line in lines]}
            model, _ = load_for_inference(str(result))
        else:
            model = untrained(task, recipe, extends=arm.extends)
        return row | judge(model, task, Path(scratch), extends=arm.extends) | memory_held()


def untrained(task: Task, recipe: Recipe, *, extends: bool) -> Any:
    """Load the base, with its new positions or its own."""
    config = load_config(model_source(task.model))
    if extends:
        extended_config(config, recipe)
    dtype = getattr(torch, recipe.dtype)
    return load_weights(model_source(task.model), config, dtype=dtype, attention="sdpa").to(DEVICE).eval()


def judge(model: Any, task: Task, scratch: Path, *, extends: bool) -> Row:
    """Measure perplexity by length and passkeys."""
    tokenizer = load_tokenizer(model_source(task.model))
    longest = 2 * task.context if extends else task.context
    held_out = tokenize_documents(read_documents(task.validation), tokenizer, cache_dir=task.cache)["input_ids"]
    measured = perplexity_by_length(
        model,
        held_out,
        lengths=list(halvings(longest)),
        longest=2 * task.context,
        stride=max(16, task.context // 64),
        max_targets=task.targets,
        show_progress=False,
    )
    found = run_retrieval(
        model,
        tokenizer,
        passkey(chat=False),
        lengths=[longest],
        depths=[0.0, 0.5],
        num_trials=task.trials // 2,
        output=scratch / "passkey",
        show_progress=False,
    )
    return {
        "perplexity": {str(length): round(value.perplexity, 4) for length, value in measured.items()},
        "passkey": round(found.lengths[0].shares["generated"].share, 3),
    }


def halvings(longest: int) -> Iterator[int]:
    """Yield the quarter, the half and the whole of a length."""
    yield from (longest // 4, longest // 2, longest)
