"""Write the report of `memory_optimizations.py`: CSV, a page and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from _measure import __doc__ as how_measured
from _report import Provenance, caption, markdown_table, write_csv, write_markdown


@dataclass(kw_only=True)
class Row:
    """One run, with one more optimization than the previous one."""

    optimization: str
    keys: str
    """The optimization's recipe keys."""
    peak_bytes: int | None = None
    """Peak memory of the run: weights, gradients, optimizer and activations."""
    tokens_per_second: float | None = None
    losses: str = ""
    """Of each step."""
    loss_difference: float | None = None
    """Largest relative difference of a step's loss from the first run's."""
    note: str = ""
    """Why there are no numbers."""


def write_report(
    rows: Sequence[Row], folder: Path, device: torch.device, origin: Provenance, *, model: str, shape: str = ""
) -> None:
    """Write `memory-optimizations-DEVICE` (followed by a random model's shape, if given) as .csv, .md and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "-".join(filter(None, ["memory-optimizations", device.type, shape]))
    write_csv(path.with_suffix(".csv"), rows, origin)
    draw(rows, path.with_suffix(".png"), origin)
    second = "second of processor time" if device.type == "cpu" else "second"
    introduction = (
        f"{model}, LoRA+, one row a step, groups of a quarter of the row. From the first line to the last each run has "
        "one optimization more than the one above it. Memory is the highest of a run from loading the weights to the "
        f"last step, all that it allocates; tokens per {second} are those of the median step after the first. The last "
        "column is the largest relative difference of a step's loss from that of the run without optimizations: "
        "rounding, except where the optimizer's state or the base is packed into fewer bits."
    )
    pages = {
        "": introduction,
        "Results": _table(rows),
        "Picture": f"![Memory and speed by optimization]({path.name}.png)",
        "How memory is measured": how_measured.strip(),
    }
    write_markdown(path.with_suffix(".md"), "Optimizations: what each saves and costs", pages, origin)
    print(f"report: {path}.md, .csv, .png")


def _table(rows: Sequence[Row]) -> str:
    first = rows[0].peak_bytes
    lines = []
    for row in rows:
        cells = [row.optimization if row is rows[0] else f"+ {row.optimization}", f"`{row.keys}`" if row.keys else ""]
        if row.peak_bytes is None or row.tokens_per_second is None:
            cells += [row.note, "", "", ""]
        else:
            times = f"{first / row.peak_bytes:.2f} ×" if first else "—"
            difference = "—" if row.loss_difference is None else f"{row.loss_difference:.0e}"
            cells += [f"{row.peak_bytes / 2**20:,.0f} MiB", times, f"{row.tokens_per_second:,.0f}", difference]
        lines.append(cells)
    return markdown_table(["optimizations", "recipe", "peak memory", "less by", "tokens/s", "loss differs by"], lines)


def draw(rows: Sequence[Row], path: Path, origin: Provenance) -> None:
    """Draw memory and speed of each run as bars, one below the other."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [row.optimization if row is rows[0] else f"+ {row.optimization}" for row in rows]
    figure, (memory, speed) = pyplot.subplots(1, 2, figsize=(10, 1.6 + 0.5 * len(rows)), sharey=True)
    for axes, values, form, colour in (
        (memory, [(row.peak_bytes or 0) / 2**20 for row in rows], "{:,.0f}", "#0072b2"),
        (speed, [row.tokens_per_second or 0 for row in rows], "{:,.0f}", "#888888"),
    ):
        bars = axes.barh(names, values, color=colour, height=0.6)
        labels = [form.format(value) if value else row.note for value, row in zip(values, rows, strict=True)]
        axes.bar_label(bars, labels, padding=4, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15)
    memory.invert_yaxis()
    memory.set_title("peak memory, MiB", loc="left", fontsize=10)
    speed.set_title("tokens per second", loc="left", fontsize=10)
    figure.text(0.01, 0.01, caption(origin), fontsize=6.5, color="#666666", va="bottom")
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
