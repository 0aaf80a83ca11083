"""A chart as inline SVG: no script, no outside resource, colours from the page's style sheet.

Lines differ in colour, dash and marker at once, so that none of these needs to be seen.
"""

import math
from collections.abc import Callable
from html import escape

from longlora.report.blocks import Chart, Level, Point, Series

WIDTH, HEIGHT = 460, 300  # units of the view box
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 50
NUM_STYLES = 8
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 4", "1 4", "8 2 2 2")

Scale = Callable[[float], float]


def line_chart(chart: Chart, *, identity: str) -> str:
    """Draw a chart; `identity` is unique on the page and joins the picture to its title and description."""
    x, x_ticks = _x_axis(chart)
    y, y_ticks, y_text = _y_axis(chart)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{identity}-t {identity}-d">',
        f'<title id="{identity}-t">{escape(chart.title)}</title>',
        f'<desc id="{identity}-d">{escape(describe(chart))}</desc>',
        *_axes(chart, x, x_ticks, y, y_ticks, y_text),
        *(_level(level, index, y) for index, level in enumerate(chart.levels)),
        *(_series(series, x, y, chart, shift) for series, shift in zip(chart.series, _shifts(chart), strict=True)),
        "</svg>",
    ]
    return "".join(parts)


def key(style: int) -> str:
    """Draw what a line looks like, for a legend."""
    line = f'<line x1="1" y1="7" x2="33" y2="7" class="line s{style % NUM_STYLES}"{_dash(style)}/>'
    return f'<svg class="key" viewBox="0 0 34 14" aria-hidden="true">{line}{_marker(17, 7, style)}</svg>'


def level_key(index: int) -> str:
    """Draw what a horizontal line looks like, for a legend."""
    line = f'<line x1="1" y1="7" x2="33" y2="7" class="level l{index}"/>'
    return f'<svg class="key" viewBox="0 0 34 14" aria-hidden="true">{line}</svg>'


def describe(chart: Chart) -> str:
    """Say what a chart shows in words: every line's first and last value, and its lowest and highest."""
    text = [f"Line chart of {chart.y_label} over {chart.x_label}."]
    for series in chart.series:
        if not series.points:
            continue
        first, last = series.points[0], series.points[-1]
        values = [point.y for point in series.points]
        show = (lambda value: f"{value:.0%}") if chart.percent else (lambda value: f"{value:.3g}")
        text.append(
            f"{series.label}: {show(first.y)} at {first.x:,.0f}, {show(last.y)} at {last.x:,.0f}, "
            f"lowest {show(min(values))}, highest {show(max(values))}."
        )
    text += [f"Horizontal line: {level.label}." for level in chart.levels]
    return " ".join(text)


def _x_axis(chart: Chart) -> tuple[Scale, list[float]]:
    values = [point.x for series in chart.series for point in series.points] or [0.0, 1.0]
    if chart.x_ticks is None:
        low, high = min(0.0, *values), max(values)
        ticks = round_ticks(low, high)
        return _linear(low, max(high, low + 1), _LEFT, WIDTH - _RIGHT), [tick for tick in ticks if low <= tick <= high]
    low, high = math.log2(min(chart.x_ticks)), math.log2(max(chart.x_ticks))
    margin = 0.06 * (high - low) or 0.5
    scale = _linear(low - margin, high + margin, _LEFT, WIDTH - _RIGHT)
    return (lambda value: scale(math.log2(value))), chart.x_ticks


def _y_axis(chart: Chart) -> tuple[Scale, list[float], Callable[[float], str]]:
    if chart.percent:
        return _linear(-0.03, 1.03, HEIGHT - _BOTTOM, _TOP), [0, 0.25, 0.5, 0.75, 1], lambda value: f"{value:.0%}"
    values = [v for s in chart.series for p in s.points for v in (p.y, p.low, p.high) if v is not None] or [0.0, 1.0]
    low, high = min(values), max(values)
    if chart.wide_range and low > 0 and high / low > 4:
        floor, ceiling = math.log10(low), math.log10(high)
        margin = 0.05 * (ceiling - floor)
        scale = _linear(floor - margin, ceiling + margin, HEIGHT - _BOTTOM, _TOP)
        return (lambda value: scale(math.log10(value))), _log_ticks(low, high), lambda value: f"{value:g}"
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    ticks = round_ticks(low - margin, high + margin)
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]))) if len(ticks) > 1 else 2
    scale = _linear(low - margin, high + margin, HEIGHT - _BOTTOM, _TOP)
    return scale, ticks, lambda value: f"{value:.{digits}f}"


def _linear(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def round_ticks(low: float, high: float) -> list[float]:
    """Return four to eight round numbers between two values."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (step * factor) >= 4 or factor == 1)
    first = math.ceil(low / step)
    return [step * index for index in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 3, 5, 7)]
    return [tick for tick in ticks if low * 0.95 <= tick <= high * 1.05]


def _axes(
    chart: Chart, x: Scale, x_ticks: list[float], y: Scale, y_ticks: list[float], y_text: Callable[[float], str]
) -> list[str]:
    bottom = HEIGHT - _BOTTOM
    parts = []
    for tick in y_ticks:
        place = y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{y_text(tick)}</text>')
    last = -math.inf
    for tick in x_ticks:
        place, text = x(tick), f"{tick:,.0f}"
        width = 7.4 * len(text)
        parts.append(f'<line class="axis" x1="{place:.1f}" x2="{place:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        if place - width / 2 < last + 6:  # a label that would touch its neighbour is left out, its tick stays
            continue
        last = place + width / 2
        # The last label must not leave the picture.
        anchor = min(place, WIDTH - width / 2 - 1)
        parts.append(f'<text class="tick" x="{anchor:.1f}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    height = (_TOP + bottom) / 2
    parts.append(
        f'<text class="label" transform="translate(14 {height}) rotate(-90)" text-anchor="middle">'
        f"{escape(chart.y_label)}</text>"
    )
    return parts


def _level(level: Level, index: int, y: Scale) -> str:
    place = y(level.y)
    return f'<line class="level l{index}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'


def _shifts(chart: Chart) -> list[float]:
    """Move the lines of a chart of shares a little apart: many are 0 % or 100 % together and would hide each other."""
    count = len(chart.series)
    return [6.0 * (index - (count - 1) / 2) if chart.percent else 0.0 for index in range(count)]


def _series(series: Series, x: Scale, y: Scale, chart: Chart, shift: float) -> str:
    style = series.style % NUM_STYLES
    places = [(x(point.x) + shift, y(point.y)) for point in series.points]
    parts = [f'<g class="s{style}">']
    if len(places) > 1:
        if not chart.percent:
            parts.append(_band(series.points, x, y))
        line = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
        parts.append(f'<polyline class="line" points="{line}"{_dash(style)}/>')
    for point, (across, up) in zip(series.points, places, strict=True):
        if (chart.percent or len(places) == 1) and point.low is not None and point.high is not None:
            ends = f'y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"'
            parts.append(f'<line class="whisker" x1="{across:.1f}" x2="{across:.1f}" {ends}/>')
        value = f"{point.y:.0%}" if chart.percent else f"{point.y:.4g}"
        if len(places) <= 40:
            tip = f"{series.label}, {point.x:,.0f}: {value}"
            parts.append(f"<g><title>{escape(tip)}</title>{_marker(across, up, style)}</g>")
    return "".join([*parts, "</g>"])


def _band(points: list[Point], x: Scale, y: Scale) -> str:
    known = [point for point in points if point.low is not None and point.high is not None]
    if len(known) < 2:
        return ""
    upper = [f"{x(p.x):.1f},{y(p.high):.1f}" for p in known if p.high is not None]
    lower = [f"{x(p.x):.1f},{y(p.low):.1f}" for p in reversed(known) if p.low is not None]
    return f'<polygon class="band" points="{" ".join(upper + lower)}"/>'


def _dash(style: int) -> str:
    pattern = _DASHES[style % NUM_STYLES]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _marker(x: float, y: float, style: int) -> str:
    kind, size = style % 4, 4.0
    attributes = f'class="mark s{style % NUM_STYLES}"'
    if kind == 0:
        return f'<circle {attributes} cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
    corners = {
        1: [(-size, -size), (size, -size), (size, size), (-size, size)],
        2: [(0, -1.3 * size), (1.2 * size, size), (-1.2 * size, size)],
        3: [(0, -1.4 * size), (1.4 * size, 0), (0, 1.4 * size), (-1.4 * size, 0)],
    }[kind]
    points = " ".join(f"{x + across:.1f},{y + up:.1f}" for across, up in corners)
    return f'<polygon {attributes} points="{points}"/>'
