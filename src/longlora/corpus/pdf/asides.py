"""Find what interrupts the text of a column: captions, footnotes, tables and figure labels."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

from longlora.corpus.pdf.drawings import CAPTION
from longlora.corpus.pdf.lines import Line, split

Kind = Literal["body", "caption", "footnote", "table", "label"]

_SMALLER = 0.94  # times the body's type size
_WIDE_GAP = 1.25  # times the usual line spacing
_TABLE_GAP = 3.0  # times the usual line spacing, next to a caption
_FOOTNOTES_BELOW = 0.5  # of the page's height
_FEWEST_CELLS = 3
_WORDS_OF_A_CELL = 4
_NOTE = re.compile(r"(?P<mark>\d{1,3}|[*∗†‡§¶]+)(?P<dot>[.)])?\s*(?=\S)")


@dataclass(frozen=True)
class Block:
    """Consecutive lines of one kind in a column."""

    kind: Kind
    lines: Sequence[Line]


def split_column(
    lines: Sequence[Line], *, body_size: float, page_height: float, note_is_open: bool = False
) -> Iterator[Block]:
    """Split the lines of a column into text and what interrupts it, in page order.

    With `note_is_open`, small lines at the foot continue a note of the previous column and need no mark.
    """
    leading = usual_leading(lines)
    first_note = _first_footnote(lines, body_size, page_height, note_is_open)
    kinds: list[Kind] = ["body" if index < first_note else "footnote" for index in range(len(lines))]
    captions: list[int] = []
    end = 0
    for begin in range(first_note):
        if begin < end or not _begins_caption(lines, begin, leading, body_size):
            continue
        captions.append(begin)
        end = _end_of_caption(lines, begin, first_note, leading)
        kinds[begin:end] = ["caption"] * (end - begin)
        if lines[begin].text.lower().startswith("tab"):
            # A table's rows are below its caption or, if there are none, above it.
            for edge, rows in ((end - 1, range(end, len(lines))), (begin, range(begin - 1, -1, -1))):
                if _mark(lines, kinds, "table", edge, rows, _TABLE_GAP * leading, least=2):
                    break
        else:
            # Short cells right above a figure's caption are its labels.
            _mark(lines, kinds, "label", begin, range(begin - 1, -1, -1), _TABLE_GAP * leading)
    # Every caption begins a new block, so that adjacent captions are not joined.
    for part in split(range(len(lines)), lambda above, index: kinds[above] != kinds[index] or index in captions):
        yield Block(kinds[part[0]], lines[part[0] : part[-1] + 1])


def usual_leading(lines: Sequence[Line]) -> float:
    """Return the median line spacing of a column, in points."""
    steps = [below.baseline - above.baseline for above, below in pairwise(lines)]
    return median([step for step in steps if step > 0] or [1.2 * lines[0].size if lines else 12.0])


def note_mark(line: Line) -> str | None:
    """Return the mark at the beginning of a footnote, a raised number or a symbol; None if there is none."""
    match = _NOTE.match(line.text)
    if match is None:
        return None
    mark = match.group("mark")
    is_set_off = line.is_raised(line.words[0]) or not mark[0].isdigit() or line.words[0].size < 0.9 * line.size
    return mark if is_set_off or not match.group("dot") else None


def _first_footnote(lines: Sequence[Line], body_size: float, page_height: float, note_is_open: bool) -> int:
    """Return the index of the first small line at a column's foot with a footnote mark; if none, the line count."""
    begin = len(lines)
    while begin > 0 and lines[begin - 1].size <= _SMALLER * body_size:
        begin -= 1
    for index in range(begin, len(lines)):
        is_note = note_mark(lines[index]) is not None or (note_is_open and 0 < begin == index)
        if is_note and lines[index].baseline > _FOOTNOTES_BELOW * page_height:
            return index
    return len(lines)


def _begins_caption(lines: Sequence[Line], index: int, leading: float, body_size: float) -> bool:
    line = lines[index]
    match = CAPTION.match(line.text)
    if match is None:
        return False
    # Text may begin with "Figure 3 shows", and a line with "Figure 3. The", but hardly with "Figure 3:".
    if match.group("end") in (":", "|"):
        return True
    gap = line.baseline - lines[index - 1].baseline if index else float("inf")
    is_small = line.size <= _SMALLER * body_size
    is_set_off = gap > _WIDE_GAP * leading or line.words[0].is_bold
    return is_small or (is_set_off and match.group("end") is not None)


def _end_of_caption(lines: Sequence[Line], begin: int, limit: int, leading: float) -> int:
    """Return the end of a caption: a gap, a change of type size, or the beginning of cells or another caption."""
    own_leading = leading
    for end in range(begin + 1, limit):
        line = lines[end]
        step = line.baseline - lines[end - 1].baseline
        following = CAPTION.match(line.text)
        if (
            abs(line.size - lines[begin].size) > 0.06 * lines[begin].size
            or step > _WIDE_GAP * own_leading
            or len(line.cells) >= _FEWEST_CELLS
            or (following and following.group("end"))
        ):
            return end
        own_leading = step if end == begin + 1 else own_leading
    return limit


def _mark(
    lines: Sequence[Line], kinds: list[Kind], kind: Kind, edge: int, order: Iterable[int], gap: float, least: int = 1
) -> bool:
    """Mark the rows of cells adjacent to `edge`, without gaps in between; return whether there are at least `least`."""
    rows = []
    for index in order:
        is_near = abs(lines[index].baseline - lines[edge].baseline) <= gap
        is_row = _is_row(lines[index]) if kind == "label" else len(lines[index].cells) >= 2
        if kinds[index] != "body" or not is_near or not is_row:
            break
        rows.append(index)
        edge = index
    for index in rows if len(rows) >= least else ():
        kinds[index] = kind
    return len(rows) >= least


def _is_row(line: Line) -> bool:
    cells = line.cells
    return len(cells) >= _FEWEST_CELLS and median(len(cell.split()) for cell in cells) <= _WORDS_OF_A_CELL
