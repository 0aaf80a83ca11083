"""Charts of a training file's rows, and a self-contained HTML page with the results of a check."""

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from longlora.corpus.checking import PERCENTILES, CheckReport, percentiles
from longlora.corpus.quality import DEPTHS
from longlora.support.figures import new_figure, plain, png_bytes, save_figure
from longlora.support.files import write_atomically
from longlora.support.wording import templates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 30
_MOST_KINDS = 12


def draw_lengths(report: CheckReport, path: Path) -> None:
    """Draw histograms of prompt and answer lengths, each with its median, on a log2 scale."""
    columns = {name: values for name, values in report.lengths.items() if name != "row"}
    figure, axes = new_figure(5 * len(columns) + 1, 3.6, nrows=1, ncols=len(columns), squeeze=False)
    for number, (name, values) in enumerate(columns.items()):
        _histogram(axes[0, number], values, f"tokens of the {name}", color=f"C{number}")
    figure.suptitle(f"{Path(report.file).name}: {len(report.answers):,} rows", fontsize="medium")
    save_figure(figure, path)


def write_page(report: CheckReport, path: Path) -> None:
    """Write the results of a check, with charts and a sample of the questions, as one HTML file."""
    pages = templates("corpus/templates")
    page = pages.get_template("check.html.j2").render(
        report=report,
        quality=report.quality,
        style=templates("report/templates").get_template("page.css").render(),
        percentiles={name: percentiles(values) for name, values in report.lengths.items() if values},
        percents=PERCENTILES,
        picture=_picture(report),
    )
    write_atomically(path, page)


def _picture(report: CheckReport) -> str:
    """Return charts of the questions as a PNG in base64; empty if there are no questions."""
    quality = report.quality
    if not quality.num_questions:
        return ""
    figure, axes = new_figure(10, 6, nrows=2, ncols=2)
    depths, kinds = axes[0]
    depths.bar([f"{100 * part // DEPTHS}" for part in range(DEPTHS)], quality.depths, color="C0", width=0.85)
    depths.set_xlabel("start of the evidence, % of the document")
    depths.set_ylabel("passages")
    common = quality.kinds.most_common(_MOST_KINDS)[::-1]
    kinds.barh([name for name, _ in common], [count for _, count in common], color="C1")
    kinds.set_xlabel("questions of this kind")
    for each, values, what in (
        (axes[1, 0], quality.question_words, "a question"),
        (axes[1, 1], quality.answer_words, "an answer"),
    ):
        each.hist(values, bins=min(_BINS, max(values) - min(values) + 1), color="C2")
        each.set_xlabel(f"words in {what}")
        each.set_ylabel("questions")
    for each in axes.flat:
        plain(each, grid=each is not kinds)
        each.set_axisbelow(True)
    return base64.b64encode(png_bytes(figure)).decode("ascii")


def _histogram(axes: "Axes", values: list[int], label: str, *, color: str) -> None:
    from matplotlib.ticker import FuncFormatter

    low, high = max(1, min(values)), max(2, *values)
    edges = np.geomspace(low * 0.98, high * 1.02, _BINS + 1)
    axes.hist(np.maximum(values, 1), bins=edges.tolist(), color=color, alpha=0.85)
    median = percentiles(values)["p50"]
    axes.axvline(max(median, 1), color="black", linewidth=1, linestyle="--")
    axes.annotate(f" median {median:,}", (max(median, 1), axes.get_ylim()[1]), va="top")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel(label)
    axes.set_ylabel("rows")
    plain(axes)
