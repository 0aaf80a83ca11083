"""Charts as inline SVG: Python computes the layout, a template draws it, the page's style sheet sets the colors.

Lines differ in color, dash and marker at once, so that any one of these is enough to tell them apart. matplotlib's SVG
output does not offer this, nor colors from a style sheet, a text description, tooltips, and freedom from `url(…)`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from longlora.report.blocks import Chart
from longlora.support.wording import templates

WIDTH, HEIGHT = 460, 300  # units of the view box
X_ENDS, Y_ENDS = (58, 446), (250, 12)  # start and end of the axes
CHARACTER_WIDTH = 7.4

Transform = Callable[[float], float]
PAGES = templates("report/templates")


class Tick(NamedTuple):
    """A position on an axis, in units of the view box, and its label."""

    at: float
    text: str


class Axis(NamedTuple):
    """An axis: its ends, the mapping from values to positions, and its ticks."""

    start: float
    end: float
    at: Transform
    ticks: list[Tick]


def line_chart(chart: Chart, *, identity: str) -> str:
    """Draw a chart and its legend as HTML; `identity`, unique on the page, links the picture to its description."""

    def number(value: float, digits: int = 4) -> str:
        return f"{value:.0%}" if chart.percent else f"{value:.{digits}g}"

    # The text description gives every line's first, last, lowest and highest value.
    description = [f"Line chart of {chart.y_label} over {chart.x_label}."]
    for series in chart.series:
        if points := series.drawn:
            first, last = (f"{number(point.y, 3)} at {point.x:,.0f}" for point in (points[0], points[-1]))
            lowest, highest = (number(choose(point.y for point in points), 3) for choose in (min, max))
            description.append(f"{series.label}: {first}, {last}, lowest {lowest}, highest {highest}.")
    description += [f"Horizontal line: {level.label}." for level in chart.levels]
    return PAGES.get_template("chart.html.j2").render(
        chart=chart,
        identity=identity,
        description=" ".join(description),
        number=number,
        x=_x_axis(chart),
        y=_y_axis(chart),
        width=WIDTH,
        height=HEIGHT,
        character_width=CHARACTER_WIDTH,
    )


def round_ticks(low: float, high: float) -> list[float]:
    """Return four to eight round numbers between two values."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (step * factor) >= 4 or factor == 1)
    return [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _x_axis(chart: Chart) -> Axis:
    if chart.by_length:
        low, high = _with_room(chart.places, math.log2)
        axis = _axis(X_ENDS, low, high, chart.places, "{:,.0f}", math.log2)
    else:
        values = chart.places or [0.0, 1.0]
        low, high = min(0.0, *values), max(values)
        axis = _axis(X_ENDS, low, max(high, low + 1), round_ticks(low, high), "{:,.0f}")
    return axis._replace(ticks=list(_apart(axis.ticks)))


def _apart(ticks: list[Tick]) -> Iterator[Tick]:
    """Remove labels that would touch the one before; the ticks stay."""
    end = -math.inf
    for tick in ticks:
        reach = CHARACTER_WIDTH * len(tick.text) / 2
        if tick.at - reach < end + 6:
            yield tick._replace(text="")
        else:
            end = tick.at + reach
            yield tick


def _y_axis(chart: Chart) -> Axis:
    if chart.percent:
        return _axis(Y_ENDS, -0.03, 1.03, (0, 0.25, 0.5, 0.75, 1), "{:.0%}")
    values = [v for s in chart.series for p in s.drawn for v in (p.y, p.low, p.high) if v is not None] or [0.0, 1.0]
    if chart.wide_range and min(values) > 0 and max(values) / min(values) > 4:
        low, high = _with_room(values, math.log10)
        decades = range(math.floor(low), math.ceil(high))
        ticks = [tick for d in decades for f in (1, 2, 3, 5, 7) if low <= math.log10(tick := f * 10.0**d) <= high]
        return _axis(Y_ENDS, low, high, ticks, "{:g}", math.log10)
    low, high = _with_room(values)
    ticks = round_ticks(low, high)
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]))) if len(ticks) > 1 else 2
    return _axis(Y_ENDS, low, high, ticks, f"{{:.{digits}f}}")


def _with_room(values: Iterable[float], transform: Transform = float) -> tuple[float, float]:
    """Return the transformed ends of an axis, with a margin around the outermost values."""
    places = [transform(value) for value in values]
    low, high = min(places), max(places)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _axis(
    ends: tuple[int, int], low: float, high: float, ticks: Iterable[float], text: str, transform: Transform = float
) -> Axis:
    """Lay out an axis; `low` and `high` are the transformed values at its ends."""
    start, end = ends

    def at(value: float) -> float:
        return round(start + (transform(value) - low) / (high - low) * (end - start), 1)

    return Axis(start, end, at, [Tick(at(tick), text.format(tick)) for tick in ticks])
