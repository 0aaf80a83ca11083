"""Tables and figures of retrieval results and loss curves, written beside their result files."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from longlora.evaluation.results import LossByPosition, Retrieval
from longlora.evaluation.shares import Share
from longlora.support.figures import new_figure, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {"generated": "answered", "chosen": "chosen"}
_MEANS = {"found": "needles found", "rank": "mean rank", "margin": "margin (nats)"}
_GREY = "#888888"


def write_result(result: Retrieval | LossByPosition, output: str | Path) -> None:
    """Write the figure, then the result file, which marks the evaluation as finished."""
    Path(output).mkdir(parents=True, exist_ok=True)
    draw(result, Path(output))
    result.write(output)


def draw(result: Retrieval | LossByPosition, output: Path) -> None:
    """Write a result's figure into a folder."""
    if isinstance(result, Retrieval):
        save_figure(retrieval_figure(result), output / f"{result.test}.png")
    else:
        save_figure(positions_figure(result), output / "positions.png")


def result_table(result: Retrieval | LossByPosition) -> Table:
    """Tabulate a result."""
    return retrieval_table(result) if isinstance(result, Retrieval) else positions_table(result)


def retrieval_table(result: Retrieval) -> Table:
    """Tabulate shares and their intervals by length, and by depth if there are several depths."""
    depths = list(result.lengths[0].by_depth) if len(result.lengths[0].by_depth) > 1 else []
    first = next(iter(result.chance))
    means = [name for name in result.lengths[0].means if name != "found" or result.settings.get("num_needles", 1) > 1]
    measures = [_LABELS[name] + (f" (chance {chance:.0%})" if chance else "") for name, chance in result.chance.items()]
    headings = ["length", *measures, *(_MEANS[name] for name in means), *(f"depth {d}" for d in depths), "trials"]
    rows = [
        [
            f"{row.length:,}",
            *(_with_interval(row.shares[measure]) for measure in result.chance),
            *(f"{row.means[name]:.0%}" if name == "found" else f"{row.means[name]:.2f}" for name in means),
            *(f"{row.by_depth[depth][first].share:.0%}" for depth in depths),
            str(row.shares[first].num_trials),
        ]
        for row in result.lengths
    ]
    return _table(f"{result.test}: right answers, with 95 % intervals", headings, rows)


def _with_interval(share: Share) -> str:
    return f"{share.share:.0%} ({share.low:.0%} to {share.high:.0%})"


def positions_table(result: LossByPosition) -> Table:
    """Tabulate the loss curve."""
    rows = [
        [
            f"{bucket.start:,} to {bucket.end - 1:,}",
            f"{bucket.loss:.3f}",
            f"{bucket.standard_error:.3f}",
            f"{math.exp(min(bucket.loss, 700)):.2f}",
        ]
        for bucket in result.curve
    ]
    title = f"Loss by position, {result.num_windows} windows of {result.length:,} tokens"
    return _table(title, ["tokens before", "loss (nats)", "± standard error", "perplexity"], rows)


def _table(title: str, headings: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def positions_figure(result: LossByPosition) -> "Figure":
    """Plot loss over position with a band of two standard errors, marking the model's context if it is in range."""
    figure, axes = new_figure(7, 4.2)
    middles = [(bucket.start + bucket.end - 1) / 2 for bucket in result.curve]
    losses = np.array([bucket.loss for bucket in result.curve])
    errors = np.nan_to_num([bucket.standard_error for bucket in result.curve])
    axes.plot(middles, losses, marker="o", markersize=3)
    axes.fill_between(middles, losses - 2 * errors, losses + 2 * errors, alpha=0.25, label="± 2 standard errors")
    if result.context is not None and result.context < result.length:
        axes.axvline(result.context, color=_GREY, linestyle="--", linewidth=1, label="the model's context")
    axes.set(
        xlabel="position: tokens before the target",
        ylabel="loss (nats per token)",
        title=f"{result.num_windows} windows of {result.length:,} tokens",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False)
    plain(axes)
    return figure


def retrieval_figure(result: Retrieval) -> "Figure":
    """Plot shares by length with intervals, and beside them a depth-by-length heat map and the forced-choice margin."""
    depths = list(result.lengths[0].by_depth)
    has_margin = "margin" in result.lengths[0].means
    widths = [1.0] + [1.0] * (len(depths) > 1) + [0.8] * has_margin
    figure, axes = new_figure(5 * sum(widths), 4, nrows=1, ncols=len(widths), width_ratios=widths, squeeze=False)
    panels = list(axes[0])
    _draw_shares(panels.pop(0), result)
    if len(depths) > 1:
        _draw_heat_map(figure, panels.pop(0), result, depths)
    if has_margin:
        lengths, margins = [row.length for row in result.lengths], [row.means["margin"] for row in result.lengths]
        panels[0].plot(lengths, margins, marker="o", markersize=4)
        panels[0].axhline(0, color=_GREY, linewidth=1)
        panels[0].set_ylabel("mean margin of the right value (nats)")
        _length_axis(panels[0], lengths)
    verdict, _, _ = result.verdict.partition(";")
    figure.suptitle(f"{result.test}: {verdict}", fontsize=11)
    return figure


def _length_axis(axes: "Axes", lengths: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=45 if len(lengths) > 6 else 0)
    axes.minorticks_off()
    axes.set_xlabel("length (tokens)")
    plain(axes)


def _draw_shares(axes: "Axes", result: Retrieval) -> None:
    lengths = [row.length for row in result.lengths]
    for shift, (measure, chance) in enumerate(result.chance.items()):
        shares = [row.shares[measure] for row in result.lengths]
        errors = [[s.share - s.low for s in shares], [s.high - s.share for s in shares]]
        # Shifted slightly, so that two measures do not hide each other.
        places = [length * 1.015**shift for length in lengths]
        line = axes.errorbar(
            places, [s.share for s in shares], yerr=errors, marker="o", markersize=4, capsize=3, label=_LABELS[measure]
        )
        if chance:
            axes.axhline(chance, color=line[0].get_color(), linestyle=":", linewidth=1, label="chance")
    axes.axhline(result.bar, color=_GREY, linestyle="--", linewidth=1, label=f"bar ({result.bar:.0%})")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylabel("right answers, 95 % interval")
    _length_axis(axes, lengths)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def _draw_heat_map(figure: "Figure", axes: "Axes", result: Retrieval, depths: list[str]) -> None:
    measure = list(result.chance)[-1]
    shares = [[row.by_depth[depth][measure].share for row in result.lengths] for depth in depths]
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", alpha=0.75, aspect="auto")
    for y, line in enumerate(shares):
        for x, value in enumerate(line):
            axes.text(x, y, f"{value:.0%}", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(result.lengths)), [f"{row.length:,}" for row in result.lengths])
    axes.set_yticks(range(len(depths)), depths)
    axes.set(xlabel="length (tokens)", ylabel="depth of the fact", title=f"{_LABELS[measure]}, by depth")
    figure.colorbar(image, ax=axes, format=lambda value, _: f"{value:.0%}")
