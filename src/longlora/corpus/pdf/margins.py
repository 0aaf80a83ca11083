"""Running heads, feet and page numbers: what stands at the edges of pages and comes again."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from longlora.corpus.pdf.columns import around
from longlora.corpus.pdf.lines import Line, make_lines
from longlora.corpus.pdf.page import Page

_NUM_EDGE_ROWS = 3  # a head of two lines and a page number
_NEAR_PAGES = 4  # left and right pages differ, and so do the first pages of chapters
_SAME_HEIGHT = 4.0  # points
_APART = 1.2  # of the size of type: the white between a head and the text
_FEWEST_NUMBERED_PAGES = 3

_ROMAN = re.compile(r"[ivxlcdm]{1,7}", re.IGNORECASE)
_PAGE_NUMBER = re.compile(
    r"(?:page\s*)?[-–—\[(|·]*\s*(\d{1,4}|[ivxlcdm]{1,7})\s*[-–—\])|·]*(?:\s*(?:of|/)\s*\d{1,4})?", re.I
)


@dataclass(frozen=True)
class _Row:
    page: int
    line: Line
    is_outermost: bool
    """The first or the last row of its page."""
    is_apart: bool
    """White stands between it and the text."""

    @property
    def pattern(self) -> str:
        """The text with every number alike."""
        return re.sub(r"\d+", "#", self.line.text).strip().casefold()

    @property
    def height(self) -> float:
        return self.line.baseline


def without_margins(pages: Sequence[Page]) -> list[Page]:
    """Return the pages without what comes again at their edges, and without their numbers."""
    rows = [_edge_rows(index, page) for index, page in enumerate(pages)]
    numbering = _numbering(rows)
    cleaned = []
    for index, page in enumerate(pages):
        dropped = [
            row
            for row in rows[index]
            if _comes_again(row, rows, index) or _is_number(row, index, numbering, len(pages))
        ]
        # A word is known by its place: the same objects are in the page and in its rows.
        words = {id(word) for row in dropped for word in row.line.words}
        cleaned.append(replace(page, words=[word for word in page.words if id(word) not in words]))
    return cleaned


def _edge_rows(index: int, page: Page) -> list[_Row]:
    if not page.words:
        return []
    lines = make_lines(page.words, page=page.number, column=around(page.words))
    rows = []
    for order in (lines, lines[::-1]):
        for place, line in enumerate(order[:_NUM_EDGE_ROWS]):
            beyond = order[place + 1] if place + 1 < len(order) else None
            gap = abs(beyond.baseline - line.baseline) if beyond else float("inf")
            is_apart = gap > (1 + _APART * 0.5) * max(line.size, beyond.size if beyond else 0.0)
            rows.append(_Row(index, line, place == 0, is_apart))
    return rows


def _comes_again(row: _Row, rows: Sequence[Sequence[_Row]], index: int) -> bool:
    if not any(character.isalpha() for character in row.pattern):
        return False  # numbers have a rule of their own
    near = range(max(0, index - _NEAR_PAGES), min(len(rows), index + _NEAR_PAGES + 1))
    return any(
        _is_like(row, other) and abs(other.height - row.height) <= _SAME_HEIGHT
        for page in near
        if page != index
        for other in rows[page]
    )


def _is_like(row: _Row, other: _Row) -> bool:
    """Tell whether two rows say the same, but for numbers that count the pages: chapters are counted more slowly."""
    if row.pattern != other.pattern:
        return False
    numbers = zip(re.findall(r"\d+", row.line.text), re.findall(r"\d+", other.line.text), strict=True)
    return all(int(there) - int(here) in (0, other.page - row.page) for here, there in numbers)


def _numbering(rows: Sequence[Sequence[_Row]]) -> set[tuple[int, int]]:
    """Find by how much printed page numbers differ from the count of pages, and at what height they stand.

    Enough pages must agree in both: a footnote's number may be that of the page by chance.
    """
    found: Counter[tuple[int, int]] = Counter()
    for index, page in enumerate(rows):
        found.update({(number - index, _band(row)) for row in page for number in _numbers_at_the_ends(row)})
    return {key for key, count in found.items() if count >= _FEWEST_NUMBERED_PAGES}


def _band(row: _Row) -> int:
    return round(row.height / _SAME_HEIGHT)


def _numbers_at_the_ends(row: _Row) -> set[int]:
    words = row.line.text.split()
    alone = _PAGE_NUMBER.fullmatch(row.line.text.strip())
    found = {int(word) for word in (words[0], words[-1]) if re.fullmatch(r"\d{1,4}", word)}
    if alone and alone.group(1).isdigit():
        found.add(int(alone.group(1)))
    return found


def _is_number(row: _Row, index: int, numbering: set[tuple[int, int]], num_pages: int) -> bool:
    """A number alone on its line, or a head whose first or last word counts the pages."""
    alone = _PAGE_NUMBER.fullmatch(row.line.text.strip())
    is_counted = any(
        (number - index, _band(row) + step) in numbering for number in _numbers_at_the_ends(row) for step in (-1, 0, 1)
    )
    if is_counted:
        return bool(alone) or (row.is_outermost and row.is_apart)
    if not alone or not row.is_outermost or not row.is_apart:
        return False
    number = alone.group(1)
    # First pages of chapters have their number at the foot where the others have it in the head.
    if number.isdigit() and int(number) - index in {offset for offset, _ in numbering}:
        return True
    return (number.isdigit() and num_pages < _FEWEST_NUMBERED_PAGES) or bool(_ROMAN.fullmatch(number))
