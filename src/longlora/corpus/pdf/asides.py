"""What interrupts the text of a column: captions, footnotes, and tables that no rules enclose."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from longlora.corpus.pdf.drawings import CAPTION, TABLE_MARK
from longlora.corpus.pdf.lines import Line

Kind = Literal["body", "caption", "footnote", "table", "label"]

_SMALLER = 0.94  # of the body's size of type
_WIDE_GAP = 1.25  # of the usual distance between lines
_FOOTNOTES_BELOW = 0.5  # of the page's height
_FEWEST_TABLE_ROWS = 3
_FEWEST_CELLS = 3
_WORDS_OF_A_CELL = 4
_NUMERIC_SHARE = 0.3
_CAPTIONED_TABLE_GAP = 3.0  # of the usual distance between lines
_NOTE = re.compile(r"(?P<mark>\d{1,3}|[*∗†‡§¶]+)(?P<dot>[.)])?\s*(?=\S)")


@dataclass(frozen=True)
class Block:
    """Lines of one kind that follow one another in a column."""

    kind: Kind
    lines: Sequence[Line]


def split_column(
    lines: Sequence[Line], *, body_size: float, page_height: float, note_is_open: bool = False
) -> Iterator[Block]:
    """Cut the lines of a column into text and what interrupts it, in the order of the page.

    With `note_is_open` small lines at the foot go on with a note of the column before, and need no mark.
    """
    if not lines:
        return
    leading = usual_leading(lines)
    first_note = _first_footnote(lines, body_size, page_height, note_is_open)
    kinds: list[Kind] = ["table" if line.text == TABLE_MARK else "body" for line in lines]
    for index in range(first_note, len(lines)):
        kinds[index] = "footnote"
    # A caption begins a block of its own, so that two of them do not become one.
    starts = set()
    index = 0
    while index < first_note:
        if _begins_caption(lines, index, leading, body_size):
            end = _end_of_caption(lines, index, first_note, leading)
            starts.add(index)
            kinds[index:end] = ["caption"] * (end - index)
            if is_of_table(lines[index]):
                _mark_table_beside(lines, kinds, index, end, leading)
            else:
                _mark_labels_above(lines, kinds, index, leading)
            index = end
        else:
            index += 1
    _mark_grids(lines, kinds)
    begin = 0
    for index in range(1, len(lines) + 1):
        if index == len(lines) or kinds[index] != kinds[begin] or index in starts:
            yield Block(kinds[begin], lines[begin:index])
            begin = index


def usual_leading(lines: Sequence[Line]) -> float:
    """Return the distance from line to line that is usual in a column, in points."""
    steps = [below.baseline - above.baseline for above, below in itertools.pairwise(lines)]
    steps = [step for step in steps if step > 0]
    return median(steps) if steps else 1.2 * (lines[0].size if lines else 10.0)


def is_of_table(caption: Line) -> bool:
    """Tell a table's caption from a figure's."""
    return caption.text.lower().startswith("tab")


def note_mark(line: Line) -> str | None:
    """Return the mark with which a footnote begins: a raised number or a symbol."""
    match = _NOTE.match(line.text)
    if match is None:
        return None
    mark = match.group("mark")
    is_set_off = line.is_raised(line.words[0]) or not mark[0].isdigit() or line.words[0].size < 0.9 * line.size
    return mark if is_set_off or not match.group("dot") else None


def _first_footnote(lines: Sequence[Line], body_size: float, page_height: float, note_is_open: bool) -> int:
    """Find the first of the small lines at a column's foot that begins with a mark; the number of lines if none."""
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
    gap = line.baseline - lines[index - 1].baseline if index else float("inf")
    is_set_off = gap > _WIDE_GAP * leading or line.size <= _SMALLER * body_size or line.words[0].is_bold
    # A sentence may begin with "Figure 3 shows", and a line with "Figure 3. The", but hardly with "Figure 3:".
    if match.group("end") in (":", "|"):
        return True
    return is_set_off and (match.group("end") is not None or line.size <= _SMALLER * body_size)


def _end_of_caption(lines: Sequence[Line], index: int, limit: int, leading: float) -> int:
    """A caption ends at a gap, at another size of type, or where cells begin."""
    own_leading = None
    end = index + 1
    while end < limit:
        line, above = lines[end], lines[end - 1]
        step = line.baseline - above.baseline
        if abs(line.size - lines[index].size) > 0.06 * lines[index].size or step > _WIDE_GAP * (own_leading or leading):
            break
        following = CAPTION.match(line.text)
        if len(line.cells) >= _FEWEST_CELLS or (following and following.group("end")):
            break
        own_leading = own_leading or step
        end += 1
    return end


def _mark_table_beside(lines: Sequence[Line], kinds: list[Kind], begin: int, end: int, leading: float) -> None:
    """Mark rows with cells below a table's caption, or above it where there are none below."""
    for order in (range(end, len(lines)), range(begin - 1, -1, -1)):
        edge = lines[end - 1] if order.step > 0 else lines[begin]
        rows = []
        for index in order:
            line = lines[index]
            near = abs(line.baseline - edge.baseline) <= _CAPTIONED_TABLE_GAP * leading
            if kinds[index] != "body" or not near or len(line.cells) < 2:
                break
            rows.append(index)
            edge = line
        if len(rows) >= 2:
            for index in rows:
                kinds[index] = "table"
            return


def _mark_labels_above(lines: Sequence[Line], kinds: list[Kind], begin: int, leading: float) -> None:
    """Mark what stands right above a figure's caption in short cells: the figure's labels."""
    edge = lines[begin]
    for index in range(begin - 1, -1, -1):
        line = lines[index]
        is_near = abs(line.baseline - edge.baseline) <= _CAPTIONED_TABLE_GAP * leading
        if kinds[index] != "body" or not is_near or not _is_row(line):
            return
        kinds[index] = "label"
        edge = line


def _mark_grids(lines: Sequence[Line], kinds: list[Kind]) -> None:
    """Mark rows of short cells, many of them numbers, even without a caption."""
    begin = 0
    for index in range(len(lines) + 1):
        if index < len(lines) and kinds[index] == "body" and _is_row(lines[index]):
            continue
        if index - begin >= _FEWEST_TABLE_ROWS:
            cells = [cell for line in lines[begin:index] for cell in line.cells]
            numeric = sum(any(character.isdigit() for character in cell) for cell in cells)
            if numeric >= _NUMERIC_SHARE * len(cells):
                kinds[begin:index] = ["table"] * (index - begin)
        begin = index + 1


def _is_row(line: Line) -> bool:
    cells = line.cells
    return len(cells) >= _FEWEST_CELLS and median(len(cell.split()) for cell in cells) <= _WORDS_OF_A_CELL
