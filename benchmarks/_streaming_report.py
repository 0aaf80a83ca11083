"""Write the report of `streaming.py`: JSON and a picture."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import matplotlib
from _report import Provenance, caption


@dataclass(kw_only=True)
class Curve:
    """One kind of cache over the whole text, with a point for each stretch of it."""

    cache: str
    window: int | None
    """The most tokens that a query sees; None for all."""
    num_sinks: int
    tokens: list[int] = field(default_factory=list)
    """Tokens read by the end of each stretch."""
    perplexity: list[float] = field(default_factory=list)
    """Of the tokens of each stretch."""
    cache_bytes: list[int] = field(default_factory=list)
    """Of all keys and values, at the end of each stretch."""
    resident_bytes: list[int] = field(default_factory=list)
    """Of the process, at the end of each stretch; what the allocator keeps counts too."""
    seconds: list[float] = field(default_factory=list)
    """Since the beginning of the text."""


@dataclass(kw_only=True)
class Result:
    """All curves of one model."""

    model: str
    context: int
    text: str
    num_tokens: int
    piece: int
    """Tokens per forward pass."""
    curves: list[Curve] = field(default_factory=list)


def write_report(results: Sequence[Result], folder: Path, device: str, origin: Provenance) -> None:
    """Write `streaming-cpu` or `streaming-cuda` as .json and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"streaming-{device}"
    content = {"origin": asdict(origin), "results": [asdict(result) for result in results]}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(results, path.with_suffix(".png"), origin)
    print(f"report: {path}.json, .png")


# Color, line, width, order. Where two lines coincide, the wide one is visible on both sides of the narrow one.
STYLES = {
    "streaming": ("#0072b2", "-", 1.6, 3),
    "window without sinks": ("#f0a868", "-", 5, 2),
    "all tokens": ("#555555", "--", 1.6, 1),
}


def draw(results: Sequence[Result], path: Path, origin: Provenance) -> None:
    """Draw a row for each model: perplexity on the left, cache memory on the right."""
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, grid = pyplot.subplots(
        len(results), 2, figsize=(11, 1.2 + 3.1 * len(results)), squeeze=False, layout="constrained"
    )
    for (left, right), result in zip(grid, results, strict=True):
        for curve in result.curves:
            colour, line, width, order = STYLES[curve.cache]
            style = {"color": colour, "linestyle": line, "linewidth": width, "zorder": order}
            label = {
                "streaming": f"{curve.num_sinks} sinks and a window, {curve.window or 0:,} tokens in all",
                "window without sinks": f"window of {curve.window or 0:,} tokens, no sinks",
                "all tokens": "ordinary cache: all tokens",
            }[curve.cache]
            left.plot(curve.tokens, curve.perplexity, **style, label=label)
            megabytes = [size / 2**20 for size in curve.cache_bytes]
            right.plot(curve.tokens, megabytes, **style, label=label)
        left.set(yscale="log", ylabel="perplexity of each stretch")
        left.set_title(f"{result.model}, reads {result.context:,} tokens", loc="left", fontsize=10)
        right.set(yscale="log", ylabel="keys and values, MiB")
        for axes in (left, right):
            axes.set_xlabel(f"tokens of {result.text}")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.25)
        left.legend(fontsize=8, loc="center right")
    figure.supxlabel(caption(origin), fontsize=6, color="#555555")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
