"""Write the report of `attention.py`: CSV, a page and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from _attentions import FULL, ROLL, ROLL_UNFUSED
from _measure import __doc__ as how_measured
from _report import Provenance, caption, markdown_table, write_csv, write_markdown

FORWARD, TRAINING = "forward", "forward + backward"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attention at one length: a row of the CSV."""

    heads: str
    num_tokens: int
    passes: str
    attention: str
    seconds: float | None = None
    """Median over the rounds."""
    times_as_fast_as_full: float | None = None
    """Median over the rounds of the ratio within each."""
    times_as_fast_as_roll: float | None = None
    """Compared with the roll on the same kernel."""
    peak_bytes: int | None = None
    """Highest memory of a run beyond inputs, output and their gradients (forward + backward only)."""
    peak_share: float | None = None
    """The same, as a share of inputs, output and their gradients together."""
    note: str = ""


def write_report(
    rows: Sequence[Row], folder: Path, device: torch.device, dtype: torch.dtype, origin: Provenance, *, num_rounds: int
) -> None:
    """Write `attention-cpu` or `attention-cuda` as .csv, .md and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"attention-{device.type}"
    write_csv(path.with_suffix(".csv"), rows, origin)
    draw(rows, path.with_suffix(".png"), origin)
    introduction = (
        f"One row of T tokens in {str(dtype).removeprefix('torch.')}, groups of T/4. S² by the backends that run here, "
        "beside full causal attention and algorithm 1 of the paper (half of the heads rolled by half a group), the "
        "latter on the same kernel and with explicit scores and softmax. S² computes 0.234 of the query-key pairs of "
        "full attention, so 4.27 times as fast is the ideal.\n\n"
        f"Rounds: {num_rounds}, each through all attentions in turn. Times are medians over the rounds, ratios medians "
        "of the ratios within each. Memory is the highest of one forward and backward pass beyond query, key, value, "
        "output and the gradients of these four, and its share of them. FlexAttention is measured on CUDA only: on the "
        "CPU torch has no backward pass for it."
    )
    pages = {"": introduction, **{" · ".join(key): _table(part) for key, part in _parts(rows).items()}}
    pages |= {"Picture": f"![Time and memory over length]({path.name}.png)", "How it is measured": how_measured.strip()}
    write_markdown(path.with_suffix(".md"), "Attention: time and memory", pages, origin)
    print(f"report: {path}.md, .csv, .png")


def as_ratio(ratio: float | None) -> str:
    """Format a ratio; a dash if there is none."""
    return "—" if ratio is None else f"{ratio:.2f} ×"


def _parts(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    parts: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        parts.setdefault((row.heads, row.passes), []).append(row)
    return parts


def _table(rows: Sequence[Row]) -> str:
    with_memory = any(row.peak_share is not None for row in rows)
    header = ["attention", "T", "seconds", "as fast as full", "as fast as roll"]
    header += ["memory", "share"] if with_memory else []
    lines = []
    for row in rows:
        cells = [row.attention, f"{row.num_tokens:,}"]
        if row.seconds is None:
            cells += [row.note, *[""] * (len(header) - 3)]
        else:
            cells += [f"{row.seconds:.3g}", as_ratio(row.times_as_fast_as_full), as_ratio(row.times_as_fast_as_roll)]
        if row.peak_bytes is not None and row.peak_share is not None:
            cells += [f"{row.peak_bytes / 2**20:,.0f} MiB", f"{row.peak_share:.0%}"]
        lines.append(cells)
    return markdown_table(header, lines)


def draw(rows: Sequence[Row], path: Path, origin: Provenance) -> None:
    """Draw the time and the memory of a training pass by length, for each kind of heads."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row.passes == TRAINING and row.seconds is not None]
    kinds = list(dict.fromkeys(row.heads for row in rows))
    names = list(dict.fromkeys(row.attention for row in rows))
    styles = dict(zip(names, _styles(names), strict=True))
    figure, axes = pyplot.subplots(
        2, len(kinds), figsize=(5.6 * len(kinds), 8.4), squeeze=False, sharex=True, sharey="row"
    )
    for column, heads in enumerate(kinds):
        for name in names:
            own = [row for row in rows if row.heads == heads and row.attention == name]
            lengths = [row.num_tokens for row in own]
            axes[0, column].plot(lengths, [row.seconds for row in own], label=name, **styles[name])
            shares = [max((row.peak_share or 0) * 100, 1) for row in own]  # on a logarithmic scale
            axes[1, column].plot(lengths, shares, label=name, **styles[name])
        axes[0, column].set(title=heads, yscale="log")
        axes[1, column].set_yscale("log")
        axes[1, column].yaxis.set_major_formatter("{x:g}")
        axes[1, column].set(xlabel="tokens of a row", xscale="log")
    axes[0, 0].set_ylabel("seconds, forward + backward")
    axes[1, 0].set_ylabel("peak memory beyond inputs, output and\ntheir gradients (% of those)")
    lengths = sorted({row.num_tokens for row in rows})
    for each in axes.flat:
        each.set_xticks(lengths, [f"{length / 1024:g}k" for length in lengths])
        each.minorticks_off()
        each.grid(color="#e6e6e6")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.text(0.01, 0.005, caption(origin), fontsize=7, color="#666666", va="bottom")
    figure.tight_layout(rect=(0, 0.05, 1, 0.93))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _styles(names: Sequence[str]) -> list[dict]:
    """Return line styles: ours in color, the others in gray."""
    others = {
        FULL: {"color": "#222222", "linestyle": "-"},
        ROLL: {"color": "#888888", "linestyle": "--"},
        ROLL_UNFUSED: {"color": "#888888", "linestyle": ":"},
    }
    colours = iter(["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"])
    return [
        {"marker": "o", "markersize": 4} | (others[name] if name in others else {"color": next(colours)})
        for name in names
    ]
