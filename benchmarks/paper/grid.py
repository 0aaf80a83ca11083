"""The paper's ablations on the tiny model: how are the steps of an extension best spent?

    python benchmarks/paper/grid.py                                  # every cell that has no row yet
    python benchmarks/paper/grid.py --only "S², last 40 % dense" --minutes 30
    python benchmarks/paper/grid.py --base MODEL --only full --steps 40 --positions yarn --seeds 0

From 256 to 1,024 tokens, groups of 256, LoRA+ on all linear layers, four rows per step; the learning rate warms up over
a tenth of the steps and decays linearly to zero. Training uses longlora's own code (`_arms.py`). The evaluation uses
full attention: perplexity by length on the same targets of held-out files, and recall of one of eight pairs at three
distances. Each row of results/*.jsonl is a cell, written as soon as it is measured; started again, the grid resumes.
"""

import argparse
import gc
import hashlib
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries are imported
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "src")]

import _arms  # noqa: E402
import _report  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402

from longlora.config import Recipe  # noqa: E402
from longlora.evaluation.perplexity import perplexity_by_length  # noqa: E402
from longlora.evaluation.questions import trial_grid  # noqa: E402
from longlora.evaluation.reader import read_answer  # noqa: E402
from longlora.evaluation.retrieval_tests import recall  # noqa: E402
from longlora.models.load import (  # noqa: E402
    compute_dtype,
    extended_config,
    load_config,
    load_tokenizer,
    load_weights,
    model_source,
)
from longlora.support.machine import package_versions  # noqa: E402
from longlora.tiny import TINY_MODEL  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DEPTHS = {"within a group": 0.85, "beyond a group": 0.5, "full length": 0.0}
"""Relative depth of the requested pair in the new context; a group is a quarter."""

EQUAL_TOKENS = 40  # steps of every arm
FEWER_STEPS = (10, 20, 30)  # of full attention: the curve to beat
MORE_STEPS = 80
FEWER_OF_MORE = (60,)
RATE = 1e-3
RATES = (3e-4, 3e-3)  # the other rates: each arm is judged at the best of three
DECIDING = ("full", "S²", "S², last 40 % dense", "S², every third layer dense", "S², one layer of six dense")
DECIDING += ("no shift, one layer of six dense",)
DECIDING += ("rows of g, last 40 % dense",)
OTHER_POSITIONS = ("linear", "theta", "llama3", "dynamic")
SEEDS = 5


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid; without steps, the base with its new positions; without positions, the base itself."""

    arm: str
    positions: str
    steps: int
    learning_rate: float
    seed: int


def cells() -> Iterator[Cell]:
    """Yield the cells: untrained; all arms seed by seed; the curve to beat; other positions, steps and rates."""
    for positions in ("", "yarn", *OTHER_POSITIONS):
        yield Cell(arm="base", positions=positions, steps=0, learning_rate=0.0, seed=0)
    for seed in range(SEEDS):
        common: dict[str, Any] = {"positions": "yarn", "seed": seed}
        for arm in _arms.ARMS:
            yield Cell(arm=arm, steps=EQUAL_TOKENS, learning_rate=RATE, **common)
        for steps in FEWER_STEPS:
            for rate in (RATE, *RATES):
                yield Cell(arm="full", steps=steps, learning_rate=rate, **common)
        for steps in FEWER_OF_MORE:
            yield Cell(arm="full", steps=steps, learning_rate=RATE, **common)
        for arm in DECIDING:
            for positions in OTHER_POSITIONS:
                yield Cell(arm=arm, steps=EQUAL_TOKENS, learning_rate=RATE, positions=positions, seed=seed)
            yield Cell(arm=arm, steps=MORE_STEPS, learning_rate=RATE, **common)
            for rate in RATES:
                yield Cell(arm=arm, steps=EQUAL_TOKENS, learning_rate=rate, **common)


def main() -> int:
    """Run the cells that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--base", default=TINY_MODEL, help="a model of 256 tokens of context (default: the shipped one)"
    )
    parser.add_argument("--only", nargs="+", help="names of arms")
    parser.add_argument("--steps", type=int, nargs="+")
    parser.add_argument("--positions", nargs="+")
    parser.add_argument("--rates", type=float, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no cell after so long")
    parser.add_argument("--cache", type=Path, default=HERE.parents[1] / "build" / "paper")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tiny.jsonl")
    arguments = parser.parse_args()
    logging.getLogger("longlora").setLevel(logging.ERROR)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    bench = Bench(_arms.Sizes(base=arguments.base), arguments.cache)
    began = time.monotonic()
    for cell in cells():
        values = {**asdict(cell), "base": bench.digest}
        wanted = (
            (arguments.only, cell.arm),
            (arguments.steps, cell.steps),
            (arguments.positions, cell.positions),
            (arguments.rates, cell.learning_rate),
            (arguments.seeds, cell.seed),
        )
        if any(chosen and value not in chosen for chosen, value in wanted):
            continue
        if any(row.items() >= values.items() for row in done):
            continue
        if time.monotonic() - began > arguments.minutes * 60:
            print("time is up")
            break
        row = {**values, **bench.measure(cell), **origin()}
        with arguments.out.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
        print(json.dumps({name: row[name] for name in (*asdict(cell), "perplexity", "chosen")}), flush=True)
    return 0


def origin() -> dict[str, Any]:
    """Return the part of a row that describes where it was measured."""
    return {
        "versions": package_versions("longlora", "torch", "transformers", "peft", "trl"),
        "device": _report.device_name(DEVICE),
        "threads": torch.get_num_threads(),
        "commit": _report.commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def digest_of(base: str) -> str:
    """Return the first twelve hex digits of the SHA-256 of a base's weights."""
    return hashlib.sha256((Path(model_source(base)) / "model.safetensors").read_bytes()).hexdigest()[:12]


class Bench:
    """One base, its training rows and its held-out documents."""

    def __init__(self, sizes: _arms.Sizes, cache: Path) -> None:
        self._sizes, self._cache = sizes, cache
        self.digest = digest_of(sizes.base)
        self._tokenizer = load_tokenizer(model_source(sizes.base))
        self._held_out = list(_arms.tokenized(sizes, "validation", cache)["input_ids"])
        if sizes.joined:
            self._held_out = [list(chain.from_iterable(self._held_out))]

    @cached_property
    def _rows(self) -> Dataset:
        return _arms.training_rows(self._sizes, self._cache)

    @cached_property
    def _recall_rows(self) -> Dataset:
        return _arms.recall_rows(self._sizes, self._cache)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train a cell and evaluate the result."""
        model, spent = self._train(cell) if cell.steps else (self._untrained(cell), {})
        row = {**spent, **self._judge(model, is_extended=bool(cell.positions))}
        del model
        gc.collect()
        return row

    def _train(self, cell: Cell) -> tuple[Any, dict[str, Any]]:
        arm, recipe, sizes = _arms.ARMS[cell.arm], self._recipe(cell), self._sizes
        recall_rows = self._recall_rows if arm.recall_share else None
        rows = _arms.lay_out(arm, self._rows, recall_rows, sizes, steps=cell.steps, seed=cell.seed)
        flops = _arms.cost(arm, recipe, sizes)
        spent: dict[str, Any] = {"tokens": len(rows) * sizes.context_length}
        spent |= {"passes": round(len(rows) / len(self._rows), 2)}
        spent |= {"flops_linear": flops.linear, "flops_attention": flops.attention}
        started = time.monotonic()
        model, seconds = _arms.train(arm, recipe, rows, sizes)
        spent |= {"seconds_training": round(time.monotonic() - started, 1), "seconds_steps": round(seconds, 1)}
        shutil.rmtree(recipe.output_dir)
        return model, spent

    def _recipe(self, cell: Cell) -> Recipe:
        return _arms.recipe_of(
            _arms.ARMS[cell.arm if cell.steps else "full"],
            self._sizes,
            positions=cell.positions,
            steps=max(1, cell.steps),
            learning_rate=cell.learning_rate or RATE,
            seed=cell.seed,
        )

    def _untrained(self, cell: Cell) -> Any:
        name = model_source(self._sizes.base)
        config = load_config(name)
        if cell.positions:
            recipe = self._recipe(cell)
            extended_config(config, recipe)
            shutil.rmtree(recipe.output_dir)
        return load_weights(name, config, dtype=compute_dtype(self._sizes.dtype), attention="sdpa").to(DEVICE).eval()

    def _judge(self, model: Any, *, is_extended: bool) -> dict[str, Any]:
        sizes = self._sizes
        measured = perplexity_by_length(
            model,
            self._held_out,
            lengths=sizes.lengths,
            longest=sizes.context_length,
            stride=sizes.stride,
            max_targets=sizes.targets,
            show_progress=False,
        )
        row: dict[str, Any] = {
            "perplexity": {str(length): round(value.perplexity, 4) for length, value in measured.items()},
            "loss": {str(length): round(value.loss, 5) for length, value in measured.items()},
        }
        asked = {"own context": (sizes.base_context, 0.5)} if not is_extended else {}
        asked |= {name: (sizes.context_length, depth) for name, depth in DEPTHS.items()}
        for name, (length, depth) in asked.items():
            for score, share in ask_recall(model, self._tokenizer, length, depth, sizes.trials).items():
                row.setdefault(score, {})[name] = share
        return row


def ask_recall(model: Any, tokenizer: Any, length: int, depth: float, trials: int) -> dict[str, float]:
    """Return the shares of right answers about one of eight pairs: `chosen` among the eight, and `generated`."""
    test, totals = recall(chat=False), {"chosen": 0.0, "generated": 0.0}
    for trial in trial_grid("recall", lengths=[length], depths=[depth], num_trials=trials, seed=0):
        _, scores = read_answer(model, tokenizer, test.ask(tokenizer, trial))
        for name in totals:
            totals[name] += scores[name] / trials
    return {name: round(total, 4) for name, total in totals.items()}


if __name__ == "__main__":
    sys.exit(main())
