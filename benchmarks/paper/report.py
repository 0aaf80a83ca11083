"""Rewrite the tables of docs/results.md from the rows of the grid.

python benchmarks/paper/report.py
"""

import json
import math
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "results.md"
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "src")]

import _arms  # noqa: E402
from _report import markdown_table  # noqa: E402
from grid import DEPTHS, EQUAL_TOKENS, RATE  # noqa: E402

from longlora.planner.architecture import find_architecture  # noqa: E402
from longlora.planner.compute import find_gpu, plan_duration, row_flops  # noqa: E402
from longlora.planner.job import PlannedRun  # noqa: E402

Row = dict[str, Any]
TARGET = str(_arms.TINY.context_length)
DENSE_PART = 0.4
"""Share of the steps with full attention, in the dense finish."""
INTERVAL = 6
"""One layer in so many has full attention, in what the demo recommends."""
UNTRAINED = {
    "": "as it is",
    "linear": "linear",
    "theta": "a larger base (NTK-aware)",
    "dynamic": "dynamic NTK",
    "llama3": "Llama 3's",
    "yarn": "YaRN",
}
RIVALS = (20, 30)
"""Steps of full attention that cost less than a finish of 40 %: the first in attention, the second in total."""


def main() -> int:
    """Rewrite the page."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_tables(page, tables(read_rows()) | other_tables()), encoding="utf-8")
    return 0


def read_rows(name: str = "tiny") -> list[Row]:
    """Read committed rows of the grid, `bases.py` or `cost.py`."""
    return [json.loads(line) for line in (HERE / "results" / f"{name}.jsonl").read_text().splitlines()]


def with_tables(page: str, made: dict[str, str]) -> str:
    """Insert tables between their markers, `<!-- table: NAME -->` and `<!-- end -->`."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n\n{made[match[1]]}\n\n<!-- end -->"

    return re.sub(r"<!-- table: ([\w -]+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """Return all tables of the page, by name."""
    return {
        "untrained": _untrained(rows),
        "equal tokens": _arms_table(rows),
        "recall": _recall_table(rows),
        "fewer steps": _curve(rows),
        "rates": _rates(rows),
    }


def other_tables() -> dict[str, str]:
    """Return the tables that need no rows of the grid."""
    return {"bases": _bases(read_rows("bases")), "cost": _cost(read_rows("cost")), "cost at scale": _cost_at_scale()}


def _bases(rows: Sequence[Row]) -> str:
    header = ["base", "tokens", "attention on the first token", "in the layer with most", "its size over the median's"]
    lines = [
        [row["base"], f"{row['tokens']:,}", f"{row['share']:.0%}", f"{row['largest_share']:.0%}", f"{row['size']:.1f}"]
        for row in rows
    ]
    return markdown_table(header, lines)


def _cost(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        seconds = row["seconds"]
        counted = {pattern: sum(parts.values()) for pattern, parts in row["operations"].items()}
        finished = DENSE_PART * seconds["full"] + (1 - DENSE_PART) * seconds["s2"]
        line = [row["shape"], f"{row['tokens']:,}", f"{row['operations']['full']['attention'] / counted['full']:.0%}"]
        line += [f"{seconds[pattern]:.2f}" for pattern in ("full", "s2")]
        line += [f"{seconds['s2'] / seconds['full']:.2f}", f"{counted['s2'] / counted['full']:.2f}"]
        line += [f"{seconds['s2, 1 sink token'] / seconds['full']:.2f}", f"{finished / seconds['full']:.2f}"]
        lines.append(line)
    header = ["layers of", "tokens", "attention's part", "full, s", "S², s", "S² over full", "as planned"]
    return markdown_table([*header, "with 1 sink token", f"S², last {DENSE_PART * 100:.0f} % dense"], lines)


def _cost_at_scale() -> str:
    lines = []
    for name in ("meta-llama/Llama-2-7b-hf", "Qwen/Qwen3-8B"):
        for tokens in (8192, 32768, 131072, 1048576):
            run = PlannedRun(architecture=find_architecture(name), context_length=tokens, attention="full")
            flops = row_flops(run)
            s2 = replace(run, attention="s2")
            recommended = replace(s2, shift=False, full_attention_interval=INTERVAL)
            arms = [run, s2, recommended, replace(s2, dense_finish=DENSE_PART)]
            dense, *others = (plan_duration(arm, find_gpu("h100-80gb")) for arm in arms)
            line = [name.partition("/")[2], f"{tokens:,}", f"{flops.attention / sum(flops):.0%}"]
            line += [f"{dense.tokens_per_second_per_gpu:,.0f}"]
            lines.append([*line, *(f"{dense.seconds / other.seconds:.2f}" for other in others)])
    header = ["model", "tokens", "attention's part", "tokens a second, full", "S², times as fast"]
    others = [f"no shift, one layer of {INTERVAL} dense", f"S², last {DENSE_PART * 100:.0f} % dense"]
    return markdown_table([*header, *others], lines)


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Return the rows with these values."""
    return [row for row in rows if row.items() >= wanted.items()]


def paired(rows: Sequence[Row], arm: dict[str, Any], rival: dict[str, Any]) -> list[float]:
    """Return the differences in loss at the target length, arm minus rival, for each seed of both; in nats."""
    losses = [{row["seed"]: row["loss"][TARGET] for row in select(rows, **each)} for each in (arm, rival)]
    return [losses[0][seed] - losses[1][seed] for seed in sorted(losses[0].keys() & losses[1].keys())]


def _untrained(rows: Sequence[Row]) -> str:
    lines = []
    for positions, name in UNTRAINED.items():
        for row in select(rows, arm="base", positions=positions):
            own = row["chosen"].get("own context")
            lines.append([name, *_perplexities([row]), "" if own is None else f"{own:.0%}", *_recalls([row])])
    return markdown_table(["positions", *_LENGTHS, "recall at 256", *DEPTHS], lines)


_LENGTHS = ["256", "512", TARGET]


def _arms_table(rows: Sequence[Row]) -> str:
    lines, steps = list[list[str]](), EQUAL_TOKENS
    common = {"positions": "yarn", "learning_rate": RATE}
    dense = select(rows, **common, steps=steps, arm="full")
    for name in _arms.ARMS:
        own = {**common, "arm": name, "steps": steps}
        found = select(rows, **own)
        if not found or not dense:
            continue
        attention = found[0]["flops_attention"] / dense[0]["flops_attention"]
        whole = _operations(found[0]) / _operations(dense[0])
        rivals = [_interval(paired(rows, own, {**common, "arm": "full", "steps": each})) for each in RIVALS]
        lines.append([name, str(len(found)), f"{attention:.2f}", f"{whole:.2f}", *_perplexities(found), *rivals])
    header = ["arm", "seeds", "attention", "all operations", *_LENGTHS]
    return markdown_table([*header, *(f"nats against {each} steps of full" for each in RIVALS)], lines)


def _recall_table(rows: Sequence[Row]) -> str:
    found = select(rows, positions="yarn", steps=EQUAL_TOKENS, learning_rate=RATE, seed=0)
    lines = [[row["arm"], *_recalls([row])] for name in _arms.ARMS for row in found if row["arm"] == name]
    return markdown_table(["arm", *DEPTHS], lines)


def _curve(rows: Sequence[Row]) -> str:
    found = select(rows, arm="full", positions="yarn", learning_rate=RATE)
    lines = [
        [str(steps), str(len(own)), *_perplexities(own)]
        for steps in sorted({row["steps"] for row in found})
        for own in [select(found, steps=steps)]
    ]
    return markdown_table(["steps of full attention", "seeds", *_LENGTHS], lines)


def _rates(rows: Sequence[Row]) -> str:
    found = select(rows, positions="yarn", seed=0)
    rates = sorted({row["learning_rate"] for row in found if row["steps"]})
    lines = []
    for name, steps in sorted({(row["arm"], row["steps"]) for row in found if row["steps"] <= EQUAL_TOKENS}):
        by_rate = {row["learning_rate"]: row for row in select(found, arm=name, steps=steps)}
        if len(by_rate) > 1:
            cells = [_perplexities([by_rate[rate]])[-1] if rate in by_rate else "" for rate in rates]
            lines.append([name, str(steps), *cells])
    return markdown_table(["arm", "steps", *(f"peak rate {rate:g}" for rate in rates)], lines)


def _operations(row: Row) -> float:
    return row["flops_linear"] + row["flops_attention"]


def _perplexities(rows: Sequence[Row]) -> list[str]:
    return [f"{math.exp(statistics.mean(row['loss'][length] for row in rows)):.2f}" for length in _LENGTHS]


def _recalls(rows: Sequence[Row]) -> list[str]:
    if any(name not in row["chosen"] for row in rows for name in DEPTHS):
        return [""] * len(DEPTHS)
    return [f"{statistics.mean(row['generated'][name] for row in rows):.0%}" for name in DEPTHS]


def _interval(differences: Sequence[float]) -> str:
    """Format the mean and, for several seeds, the half-width of its 95 % interval (Student's t)."""
    if not differences:
        return ""
    mean = statistics.mean(differences)
    if len(differences) < 2:
        return f"{mean:+.4f}"
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}[len(differences)]
    return f"{mean:+.4f} ± {quantile * statistics.stdev(differences) / math.sqrt(len(differences)):.4f}"


if __name__ == "__main__":
    sys.exit(main())
