"""Make the tables and the picture of docs/sink.md from the rows of the grid.

python benchmarks/sink/report.py        # prints the tables, draws docs/sink.png
"""

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / "src")]

import torch  # noqa: E402
from _report import markdown_table  # noqa: E402

Row = dict[str, Any]
TYPES = ("bfloat16", "float32")
NAMES = {
    "full": "full attention",
    "rows": "no shift (all heads cut alike)",
    "rows sink4": "no shift, 4 sink tokens",
    "s2": "**S², as in the paper**",
    "s2 sink1": "**S², 1 sink token**",
    "s2 sink4": "S², 4 sink tokens",
    "s2 sink16": "S², 16 sink tokens",
    "no shift sink1": "no shift, 1 sink token",
    "s2 full3": "S², every third layer full",
    "s2 sink1 full3": "S², 1 sink token, every third layer full",
    "s2 sink1 full6": "S², 1 sink token, one layer of six full",
    "rows full6": "no shift, one layer of six full",
    "s2 sink1 finish20": "S², 1 sink token, the last fifth of the steps full",
}


def main() -> int:
    """Print the tables and draw the picture."""
    rows = read_rows()
    for title, table in tables(rows).items():
        print(f"### {title}\n\n{table}\n")
    draw(rows, DOCS / "sink.png")
    return 0


def read_rows() -> list[Row]:
    """Read the rows of all machines."""
    files = [file for file in sorted((HERE / "results").glob("*.jsonl")) if file.stem != "cost"]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def tables(rows: Iterable[Row]) -> dict[str, str]:
    """Return a table for each machine, length and kind of cell, by title."""
    cells: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        machine = row["card"] if row["card"] != "cpu" else f"CPU, {row['dtype']}" if row["kind"] == "train" else "CPU"
        cells[row["kind"], machine, row["tokens"]].append(row)
    made = {}
    for (kind, machine, tokens), of_kind in sorted(cells.items()):
        where = f"{tokens:,} tokens, groups of {tokens // 4:,} ({machine})"
        if kind == "before":
            made[f"Before any training, {where}"] = before_table(of_kind)
        else:
            steps = of_kind[0]["steps"]
            made[f"After {steps} steps, {where}"] = trained_table(of_kind)
    return made


def before_table(rows: Sequence[Row]) -> str:
    """Return the loss by pattern, and the gradient's norm in both dtypes."""
    by_type = {dtype: {row["pattern"]: row for row in rows if row["dtype"] == dtype} for dtype in TYPES}
    types = [dtype for dtype in TYPES if by_type[dtype]]
    norms = [dtype for dtype in TYPES if any("gradient_norm" in row for row in by_type[dtype].values())]
    lines = [
        [
            NAMES[pattern],
            f"{row['loss']:.3f}",
            f"{row['loss_after_first_group']:.3f}",
            *(f"{by_type[t][pattern]['gradient_norm']:.1f}" if pattern in by_type[t] else "" for t in norms),
        ]
        for pattern, row in by_type[types[0]].items()
    ]
    return markdown_table(["attention", "loss", "after the first group", *(f"gradient, {t}" for t in norms)], lines)


def trained_table(rows: Sequence[Row]) -> str:
    """Return the loss with full attention after training under each pattern, as means over the seeds."""
    untrained = {row["pattern"]: row["loss_own_pattern"][0] for row in rows}
    lines = []
    for tuning in ("lora", "lora+"):
        by_pattern: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if row["tuning"] == tuning:
                by_pattern[row["pattern"]].append(row)
        full = {run["seed"]: run["loss_full_attention"] for run in by_pattern.get("full", [])}
        for pattern, runs in by_pattern.items():
            loss = statistics.mean(run["loss_full_attention"] for run in runs)
            same_seeds = [run for run in runs if run["seed"] in full]
            gain = sum(untrained["full"] - run["loss_full_attention"] for run in same_seeds)
            whole_gain = sum(untrained["full"] - full[run["seed"]] for run in same_seeds)
            spread = statistics.stdev(run["loss_full_attention"] for run in runs) if len(runs) > 1 else 0.0
            own = [statistics.mean(run["loss_own_pattern"][end] for run in runs) for end in (0, 1)]
            lines.append(
                [
                    "LoRA+" if tuning == "lora+" else "LoRA",
                    NAMES[pattern],
                    f"{loss:.4f} ± {spread:.4f}" if len(runs) > 1 else f"{loss:.4f}",
                    f"{gain / whole_gain:.0%}",
                    f"{own[0]:.3f} → {own[1]:.3f}",
                    f"{statistics.mean(run['gradient_norms'][0] for run in runs):.1f}",
                    f"{statistics.mean(run['passkey'] for run in runs):.0%}",
                    str(len(runs)),
                ]
            )
    header = ["tuning", "trained under", "loss", "of full's gain", "own pattern", "first gradient", "passkey", "seeds"]
    return f"Full attention before training: {untrained['full']:.4f}.\n\n" + markdown_table(header, lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw which tokens see which, with and without a sink token, and the loss before training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from longlora.attention.reference import s2_mask

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.6), width_ratios=[1, 1, 1.5], layout="constrained")
    for axis, half, title in zip(axes, (0, 1), ("first half of the heads", "second half, shifted"), strict=False):
        without, with_sink = (
            s2_mask(torch.empty(1, 2, 16, 1), group_size=4, sink_tokens=sinks)[0, half].int() for sinks in (0, 1)
        )
        axis.imshow(
            without + 2 * (with_sink - without),
            cmap=pyplot.matplotlib.colors.ListedColormap(["white", "#4c72b0", "#dd8452"]),
            vmin=0,
            vmax=2,
        )
        axis.set(title=title, xlabel="key", ylabel="query", xticks=[], yticks=[])
    axes[1].plot([], [], "s", color="#4c72b0", label="S², groups of 4")
    axes[1].plot([], [], "s", color="#dd8452", label="with sink_tokens=1 also")
    axes[1].legend(loc="upper right", fontsize=7)
    before = [row for row in rows if row["kind"] == "before"]
    longest = max(row["tokens"] for row in before)
    shown = list({row["pattern"]: row for row in before if row["tokens"] == longest}.values())
    order = sorted(shown, key=lambda row: -row["loss"])
    colors = {"s2": "#c44e52", "s2 sink1": "#dd8452", "full": "#55a868"}
    axes[2].barh(
        [NAMES[row["pattern"]].replace("**", "") for row in order],
        [row["loss"] for row in order],
        color=[colors.get(row["pattern"], "#bbbbbb") for row in order],
    )
    least = min(row["loss"] for row in order)
    axes[2].set(xlim=(least - 0.2, None), xlabel="nats a token, before any training")
    axes[2].set_title(f"{order[0]['model']}, {longest:,} tokens", fontsize=10)
    axes[2].tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
