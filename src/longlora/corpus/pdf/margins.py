"""Remove running heads, running feet and page numbers: what repeats at the edges of pages."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from longlora.corpus.pdf.lines import Line, make_lines
from longlora.corpus.pdf.pdfium import Page

_NUM_EDGE_ROWS = 3  # a head of two lines and a page number
_NEAR_PAGES = 4  # several, as left and right pages differ, and so do the first pages of chapters
_SAME_HEIGHT = 4.0  # points
_APART = 1.6  # times the type size: between a head and the text
_FEWEST_NUMBERED_PAGES = 3
_PAGE_NUMBER = re.compile(
    r"(?:page\s*)?[-–—\[(|·]*\s*(\d{1,4}|[ivxlcdm]{1,7})\s*[-–—\])|·]*(?:\s*(?:of|/)\s*\d{1,4})?", re.I
)


@dataclass(frozen=True)
class _Row:
    page: int
    line: Line
    stands_apart: bool  # it is the first or the last row of its page, with white space between it and the text

    @property
    def band(self) -> int:
        return round(self.line.baseline / _SAME_HEIGHT)

    @property
    def number(self) -> str:
        """The page number, if the row contains nothing else."""
        alone = _PAGE_NUMBER.fullmatch(self.line.text)
        return alone.group(1) if alone else ""

    @property
    def outer_numbers(self) -> set[int]:
        """The numbers at the beginning and the end of the row."""
        words = self.line.text.split()
        return {int(word) for word in (words[0], words[-1], self.number) if re.fullmatch(r"\d{1,4}", word)}

    def repeats(self, other: "_Row") -> bool:
        """Return whether two rows are the same, except for numbers that count pages (not chapters)."""
        parts, others = re.split(r"(\d+)", self.line.text.casefold()), re.split(r"(\d+)", other.line.text.casefold())
        return (
            parts[::2] == others[::2]
            and any(part.strip() and any(map(str.isalpha, part)) for part in parts[::2])
            and abs(self.line.baseline - other.line.baseline) <= _SAME_HEIGHT
            and all(
                int(there) - int(here) in (0, other.page - self.page)
                for here, there in zip(parts[1::2], others[1::2], strict=True)
            )
        )


def without_margins(pages: Sequence[Page]) -> tuple[list[Page], list[tuple[int, str]]]:
    """Return the pages without running heads, feet and page numbers; and the removed words with their pages."""
    rows = [_edge_rows(index, page) for index, page in enumerate(pages)]
    numbering = _numbering(rows)
    texts = [[word.text for word in page.words] for page in pages]
    cleaned: list[Page] = []
    left_out: list[tuple[int, str]] = []
    for index, page in enumerate(pages):
        near = [
            row
            for other in range(max(0, index - _NEAR_PAGES), min(len(pages), index + _NEAR_PAGES + 1))
            if texts[other] != texts[index]  # a page that occurs twice does not turn its lines into heads
            for row in rows[other]
        ]
        dropped = [
            row
            for row in rows[index]
            if any(row.repeats(other) for other in near) or _is_number(row, numbering, len(pages))
        ]
        # Words are identified by `id`: the page and its rows contain the same objects.
        words = {id(word): (page.number, word.text) for row in dropped for word in row.line.words}
        left_out += words.values()
        cleaned.append(replace(page, words=[word for word in page.words if id(word) not in words]))
    if not any(page.words for page in cleaned):  # all pages are the same: that is the text
        return list(pages), []
    return cleaned, left_out


def _edge_rows(index: int, page: Page) -> list[_Row]:
    if not page.words or page.is_scattered:
        return []
    lines = make_lines(page.words)
    rows = []
    for order in (lines, lines[::-1]):
        for place, line in enumerate(order[:_NUM_EDGE_ROWS]):
            beyond = order[place + 1 : place + 2]
            is_apart = all(abs(it.baseline - line.baseline) > _APART * max(line.size, it.size) for it in beyond)
            rows.append(_Row(index, line, place == 0 and is_apart))
    return rows


def _numbering(rows: Sequence[Sequence[_Row]]) -> set[tuple[int, int]]:
    """Find the offsets of printed page numbers from page indices, and the heights of the numbers.

    Enough pages must agree on both: a footnote's number may equal the page number by chance.
    """
    found: Counter[tuple[int, int]] = Counter()
    for index, page in enumerate(rows):
        found.update({(number - index, row.band) for row in page for number in row.outer_numbers})
    return {key for key, count in found.items() if count >= _FEWEST_NUMBERED_PAGES}


def _is_number(row: _Row, numbering: set[tuple[int, int]], num_pages: int) -> bool:
    """Return whether a row is a page number alone, or a head that begins or ends with the page number."""
    offsets = {number - row.page for number in row.outer_numbers}
    if any((offset, row.band + step) in numbering for offset in offsets for step in (-1, 0, 1)):
        return bool(row.number) or row.stands_apart
    if not row.number or not row.stands_apart:
        return False
    # The first pages of chapters may have their number at the foot, while the others have it in the head.
    is_counted = any(offset in offsets for offset, _ in numbering)
    return is_counted or not row.number.isdigit() or num_pages < _FEWEST_NUMBERED_PAGES
