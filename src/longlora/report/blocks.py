"""The building blocks of a report, independent of HTML and Markdown: sections of tables, charts and commands."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    tone: Literal["", "good", "bad", "quiet"] = ""
    heat: float | None = None  # intensity of the cell's color, 0 to 1; None for no color


NOT_MEASURED = Cell("not measured", "quiet")


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows; a plain string is a cell without tone or heat."""

    kind: ClassVar[str] = "table"
    caption: str
    header: list[str]
    rows: Sequence[Sequence[Cell | str]]

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, with every cell as a `Cell`."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Point:
    """A value with its interval; both ends are None if there is none."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    text: str = ""  # in the chart's table, if it has none of its own


@dataclass(frozen=True)
class Series:
    """A line of a chart; `style` selects its color, dash and marker, the same for a model in all charts."""

    label: str
    style: int
    points: Sequence[Point]

    @property
    def drawn(self) -> list[Point]:
        """The points whose values are finite; the others appear only in the table."""
        return [point for point in self.points if math.isfinite(point.y)]


@dataclass(frozen=True)
class Level:
    """A labeled horizontal line, such as the bar to reach."""

    label: str
    y: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over a common axis, and a table of the same numbers: `table`, or each line's texts by x."""

    kind: ClassVar[str] = "chart"
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    table: Table | None = None
    by_length: bool = False  # a base-2 logarithmic axis with a tick at each point; else a linear one with round ticks
    percent: bool = False  # shares, on a fixed axis from 0 to 1
    wide_range: bool = False  # use a logarithmic axis if the values differ widely
    levels: Sequence[Level] = ()
    intervals: str = ""  # describes the intervals, in the caption

    @property
    def places(self) -> list[float]:
        """All places on the horizontal axis that have a point, in order."""
        return sorted({point.x for series in self.series for point in series.points})

    @property
    def numbers(self) -> Table:
        """The table of the same numbers."""
        texts = [(series.label, {point.x: point.text for point in series.points}) for series in self.series]
        rows = [[label, *(known.get(x, NOT_MEASURED) for x in self.places)] for label, known in texts]
        header = ["model", *(f"{x:,.0f}" for x in self.places)]
        return self.table or Table(f"{self.title}, by {self.x_label}", header, rows)


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    kind: ClassVar[str] = "code"
    caption: str
    text: str

    @property
    def fence(self) -> str:
        """The Markdown fence: more backticks than any run of them in the text."""
        return "`" * max(3, 1 + max(map(len, re.findall("`+", self.text)), default=0))


Block = Table | Chart | Code


@dataclass(frozen=True)
class ReportSection:
    """A heading with its blocks; each section's introduction is in `templates/notes.j2`."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    layout: Literal["", "cards", "charts", "maps"] = ""
    """`cards`: tables that become cards on narrow screens; `charts` and `maps`: charts or heat maps side by side."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole report."""

    title: str
    lead: list[str]  # the verdict, one text per model
    sections: list[ReportSection]
    date: str
