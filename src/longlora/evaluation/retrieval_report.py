"""A retrieval result to look at: a table, a picture, and `result.json` to compute with."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from longlora.evaluation.results import Retrieval, Share
from longlora.support.figures import new_figure, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {"generated": "answered", "chosen": "chosen"}


def write_result(result: Retrieval, output: str | Path) -> None:
    """Write picture and `result.json`, which comes last: it stands for a finished evaluation."""
    draw(result, Path(output) / f"{result.test}.png")
    result.write(output)


def result_table(result: Retrieval) -> Table:
    """Tabulate shares with their intervals by length, and by depth if there are several."""
    depths = list(result.lengths[0].by_depth)
    first = next(iter(result.chance))
    table = Table(title=f"{result.test}: right answers, with 95 % intervals")
    table.add_column("length", justify="right")
    for measure, chance in result.chance.items():
        table.add_column(_LABELS[measure] + (f" (chance {chance:.0%})" if chance else ""), justify="right")
    for name in result.lengths[0].means:
        if name != "found" or result.settings.get("num_needles", 1) > 1:
            table.add_column({"found": "needles found", "rank": "mean rank", "margin": "margin (nats)"}[name])
    if len(depths) > 1:
        for depth in depths:
            table.add_column(f"depth {depth}", justify="right")
    table.add_column("trials", justify="right")
    for row in result.lengths:
        cells = [f"{row.length:,}", *(_with_interval(row.shares[measure]) for measure in result.chance)]
        cells += [
            f"{value:.0%}" if name == "found" else f"{value:.2f}"
            for name, value in row.means.items()
            if name != "found" or result.settings.get("num_needles", 1) > 1
        ]
        if len(depths) > 1:
            cells += [f"{row.by_depth[depth][first].share:.0%}" for depth in depths]
        table.add_row(*cells, str(row.shares[first].num_trials))
    return table


def _with_interval(share: Share) -> str:
    return f"{share.share:.0%} ({share.low:.0%} to {share.high:.0%})"


def draw(result: Retrieval, path: Path) -> None:
    """Draw shares by length with intervals; beside them depth by length as a heat map, or the margin of the choice."""
    depths = list(result.lengths[0].by_depth)
    has_margin = "margin" in result.lengths[0].means
    widths = [1.0] + [1.0] * (len(depths) > 1) + [0.8] * has_margin
    figure, axes = new_figure(5 * sum(widths), 4, nrows=1, ncols=len(widths), width_ratios=widths, squeeze=False)
    panels = list(axes[0])
    _draw_shares(panels.pop(0), result)
    if len(depths) > 1:
        _draw_heat_map(figure, panels.pop(0), result, depths)
    if has_margin:
        _draw_margin(panels.pop(0), result)
    verdict, _, _ = result.verdict.partition(";")
    figure.suptitle(f"{result.test}: {verdict}", fontsize=11)
    save_figure(figure, path)


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
        # Side by side where two measures would hide each other.
        places = [length * 1.015**shift for length in lengths]
        line = axes.errorbar(
            places, [s.share for s in shares], yerr=errors, marker="o", markersize=4, capsize=3, label=_LABELS[measure]
        )
        if chance:
            axes.axhline(chance, color=line[0].get_color(), linestyle=":", linewidth=1, label="chance")
    axes.axhline(result.bar, color="#888888", linestyle="--", linewidth=1, label=f"bar ({result.bar:.0%})")
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


def _draw_margin(axes: "Axes", result: Retrieval) -> None:
    lengths = [row.length for row in result.lengths]
    axes.plot(lengths, [row.means["margin"] for row in result.lengths], marker="o", markersize=4)
    axes.axhline(0, color="#888888", linewidth=1)
    axes.set_ylabel("mean margin of the right value (nats)")
    _length_axis(axes, lengths)
