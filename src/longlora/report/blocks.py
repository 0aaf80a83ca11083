"""What a report is made of, before it becomes HTML or Markdown: sections of text, tables, charts and commands."""

from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table."""

    text: str
    tone: Tone = ""
    heat: float | None = None
    """0 to 1: how strongly the cell is coloured; None for not at all."""


NOT_MEASURED = Cell(text="not measured", tone="quiet")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose first column names its rows."""

    caption: str
    header: list[str]
    rows: list[list[Cell]]
    is_map: bool = False
    """A small table of colours that stands beside others."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value with its interval, both ends None where there is none."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line of a chart; `style` is its colour, dash and marker, the same for one model in all charts."""

    label: str
    style: int
    points: list[Point]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line with a name, such as a bar to reach."""

    label: str
    y: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over a common axis, and the table that says the same in numbers."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    table: Table
    x_ticks: list[float] | None = None
    """Places of ticks on a logarithmic axis to base 2; None for a linear axis with round ticks."""

    percent: bool = False
    """Shares on a fixed axis from 0 to 1."""

    wide_range: bool = False
    """Values that may differ by much: the axis is logarithmic where they do."""

    levels: list[Level] = field(default_factory=list)
    intervals: str = ""
    """What the intervals are, for the caption."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Lines to copy."""

    caption: str
    text: str


Block = Table | Chart | Code


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with what stands below it."""

    anchor: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report."""

    title: str
    lead: list[str]
    """The verdict in sentences, one a model."""

    sections: list[Section]
    date: str
