"""The step `schedules`: how is an extension's attention best spent, on a base pretrained here?

The grid of benchmarks/paper at a size where attention matters: a Llama of 51 million parameters, pretrained at 2,048
tokens (`_base.py`), is extended to 16,384 with YaRN, in groups of 4,096, two rows per step. Each arm takes as many
steps as its budget allows. The budget is a number of steps of full attention, measured in the operations of attention
only, as when rows are very long, or in all operations. Besides `full`, there are dense runs that stop early, with the
learning rate schedule ending where they do.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import _arms
import bases
from _base import Pretraining, pretrain
from _pretraining import Phase
from _session import DEVICE, OutOfTime, Row, Session, memory_held
from grid import Bench, Cell

Counted = Literal["attention", "all"]
"""Operations that count as cost."""

ARMS = (
    "full",
    "S², one layer of six dense",
    "no shift, one layer of six dense",
    "S², last 40 % dense",
    "rows of g, last 40 % dense",
    "rows of g, last 20 % dense",
    "S², 1 sink token",
    "S²",
    "S², last 20 % dense",
    "S², 1 sink token, last 40 % dense",
    "rows of g",
)
STOPPED = (0.25, 0.5)
"""Shares of the budget after which a dense run stops."""
BUDGETS = (40, 120, 400)

LARGE = _arms.Sizes(
    base_context=2048,
    context_length=16384,
    group_size=4096,
    rows_per_step=2,
    dtype="bfloat16" if DEVICE.type == "cuda" else "float32",
    joined=True,
    stride=256,
    targets=16384,
)
LARGE_BASE = Pretraining(
    shape={"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 10, "num_attention_heads": 10},
    context_length=LARGE.base_context,
    tokens_per_step=32768,
    texts=Phase("texts", 800, 2e-3, 100, 0.3),
    recall=Phase("recall", 400, 1e-3, 20, 0.5, first_rows=128),
)
DRY = replace(LARGE, base_context=256, context_length=512, group_size=128, stride=32, targets=128, trials=1)
DRY_BASE = Pretraining(
    shape={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2},
    context_length=DRY.base_context,
    tokens_per_step=512,
    texts=Phase("texts", 2, 2e-3, 1, 0.3),
    recall=Phase("recall", 2, 1e-3, 1, 0.5, first_rows=128),
    trials=2,
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """An arm with its budget."""

    arm: str
    budget: int
    """In steps of full attention."""
    share: float = 1.0
    """Share of the budget that it uses."""
    seed: int

    @property
    def name(self) -> str:
        """The run's unique name."""
        stopped = f", stopped at {self.share:.0%}" if self.share < 1 else ""
        return f"budget {self.budget}, seed {self.seed}: {self.arm}{stopped}"


def runs(budgets: Sequence[int], seeds: int) -> Iterator[Run]:
    """Yield the runs: the smallest budget first, seed by seed."""
    for budget in sorted(budgets):
        for seed in range(seeds):
            for arm in ARMS:
                yield Run(arm=arm, budget=budget, seed=seed)
            for share in STOPPED:
                yield Run(arm="full", budget=budget, share=share, seed=seed)


def steps_within(run: Run, sizes: _arms.Sizes, counted: Counted) -> int:
    """Return the number of steps that use the run's budget, rounded to the nearest, at least 1."""
    arm = _arms.ARMS[run.arm]
    recipe = _arms.recipe_of(arm, sizes, positions="yarn", steps=1, learning_rate=1e-3, seed=0)
    first, dense = (
        row.attention if counted == "attention" else sum(row) for row in _arms.row_costs(arm, recipe, sizes)
    )
    Path(recipe.output_dir).rmdir()
    return max(1, round(run.budget * run.share * dense / ((1 - arm.dense) * first + arm.dense * dense)))


def run_schedules(
    session: Session,
    texts: Path | None,
    *,
    pretraining_seconds: float,
    budgets: Sequence[int],
    seeds: int,
    learning_rate: float,
    counted: Counted,
) -> None:
    """Pretrain the base unless it exists, and measure the runs that have no row yet."""
    sizes, plan = replace(LARGE, texts=texts), LARGE_BASE
    if session.dry:
        sizes, plan = replace(DRY, texts=texts or Path(asyncio.__file__).parent), DRY_BASE
        pretraining_seconds, budgets, seeds = 0.0, [1], 1
    files = {split: sizes.files(split) for split in ("train", "validation")}
    # Bases of different texts are different.
    folder = session.path.parent / "schedules" / f"{texts.name if texts else 'python'}{'-dry' * session.dry}"
    base = pretrain(plan, files, folder / "base", session, seconds=pretraining_seconds)
    if base is None:
        print("time is up before the base is done: start the step again to resume")
        return
    sizes = replace(sizes, base=str(base))
    bench = Bench(sizes, folder / "cache")
    case = f"base {bench.digest[:6]}"
    try:
        for name, positions in (("own positions", ""), ("positions only", "yarn")):
            cell = Cell(arm="base", positions=positions, steps=0, learning_rate=0.0, seed=0)
            session.run(f"{case}: {name}", {"arm": "base", "positions": positions}, partial(measure, bench, cell))
        session.run(f"{case}: first token", {}, lambda: bases.measure(sizes.base, plan.context_length // 2, 4))
        for run in islice(runs(budgets, seeds), 0, None, 2 if session.dry else 1):  # each kind of arm
            steps = steps_within(run, sizes, counted)
            cell = Cell(arm=run.arm, positions="yarn", steps=steps, learning_rate=learning_rate, seed=run.seed)
            settings: Row = {"base": bench.digest, **vars(run), "counted": counted, **vars(cell)}
            name = f"{case}, {counted} operations, rate {learning_rate:g}, {run.name}"
            refuse_what_takes_too_long(session, name, run, counted)
            session.run(name, settings, partial(measure, bench, cell))
    except OutOfTime as reason:
        print(reason or "time is up")


def measure(bench: Bench, cell: Cell) -> Row:
    """Train and evaluate a cell; its memory is the peak of both."""
    return bench.measure(cell) | memory_held()


def refuse_what_takes_too_long(session: Session, name: str, run: Run, counted: Counted) -> None:
    """End the call before a case that would take too long, judging by a row of the same arm with fewer steps.

    Raises:
        OutOfTime: the case would take too long; the message says how long.
    """
    rows = [row for row in session.rows.values() if row.get("arm") == run.arm and row.get("counted") == counted]
    known = [row for row in rows if "seconds_steps" in row and row["budget"] * row["share"] < run.budget * run.share]
    if name in session.rows or not known:
        return
    row = known[-1]
    times = run.budget * run.share / (row["budget"] * row["share"])
    expected = row["wall_s"] + (times - 1) * row["seconds_steps"]
    if expected > session.seconds_left:
        raise OutOfTime(f"{name} would take about {expected:.0f} s, and {session.seconds_left:.0f} are left")
