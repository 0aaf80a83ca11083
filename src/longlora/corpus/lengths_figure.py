"""A picture of how long rows are."""

from pathlib import Path

import numpy as np

from longlora.corpus.lengths import Lengths, percentiles

_BINS = 30


def draw_lengths(lengths: Lengths, path: Path) -> None:
    """Draw a histogram for prompts and one for answers, each with its median, on scales that double."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    columns = {name: values for name, values in lengths.columns.items() if name != "row"}
    figure = Figure(figsize=(5 * len(columns) + 1, 3.6), layout="constrained")
    for number, (name, values) in enumerate(columns.items()):
        axes = figure.add_subplot(1, len(columns), number + 1)
        low, high = max(1, min(values)), max(2, *values)
        edges = np.geomspace(low * 0.98, high * 1.02, _BINS + 1)
        axes.hist(np.maximum(values, 1), bins=edges.tolist(), color=f"C{number}", alpha=0.85)
        median = percentiles(values)["p50"]
        axes.axvline(median, color="black", linewidth=1, linestyle="--")
        axes.annotate(f" median {median:,}", (median, axes.get_ylim()[1]), va="top")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel(f"tokens of the {name}")
        axes.set_ylabel("rows")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{Path(lengths.file).name}: {len(lengths.prompts):,} rows", fontsize="medium")
    figure.savefig(path, dpi=130)
