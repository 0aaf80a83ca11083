"""What a report is made of, before it becomes HTML or Markdown: sections of text, tables, charts and commands."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    tone: Literal["", "good", "bad", "quiet"] = ""
    heat: float | None = None  # 0 to 1: how strongly the cell is coloured; None: not at all


NOT_MEASURED = Cell("not measured", "quiet")


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows; a plain text is a cell without tone or heat."""

    kind: ClassVar[str] = "table"
    caption: str
    header: list[str]
    rows: Sequence[Sequence[Cell | str]]

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, every cell a `Cell`."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Point:
    """A value with its interval, both ends None where there is none."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A line of a chart; `style` is its colour, dash and marker, the same for one model in all charts."""

    label: str
    style: int
    points: list[Point]


@dataclass(frozen=True)
class Level:
    """A horizontal line with a name, such as a bar to reach."""

    label: str
    y: float


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines over a common axis, and the table that says the same in numbers."""

    kind: ClassVar[str] = "chart"
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    table: Table
    x_ticks: Sequence[float] | None = None  # on a logarithmic axis to base 2; None: a linear axis with round ticks
    percent: bool = False  # shares on a fixed axis from 0 to 1
    wide_range: bool = False  # values that may differ by much: the axis is logarithmic where they do
    levels: Sequence[Level] = ()
    intervals: str = ""  # what the intervals are, for the caption


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    kind: ClassVar[str] = "code"
    caption: str
    text: str

    @property
    def fence(self) -> str:
        """What encloses the lines in Markdown: more backticks than they hold."""
        return "`" * max(3, 1 + max(map(len, re.findall("`+", self.text)), default=0))


Block = Table | Chart | Code


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it; what every such section says to its reader is in `templates/notes.j2`."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    layout: Literal["", "cards", "charts", "maps"] = ""
    """Tables that become cards on a narrow screen; charts, or small tables of colours, beside one another."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report."""

    title: str
    lead: list[str]  # the verdict in sentences, one a model
    sections: list[Section]
    date: str
