"""Figures and ruled tables: where they stand, and which words are their labels and cells rather than text."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from longlora.corpus.pdf.columns import around
from longlora.corpus.pdf.lines import joined, make_lines, typical_size
from longlora.corpus.pdf.page import Box, Drawing, Page, Word

CAPTION = re.compile(
    r"(?P<kind>figure|fig\.?|table|tab\.?|scheme|plate|chart|algorithm|listing|exhibit)\s*"
    r"(?P<number>[A-Z]?\d+(?:[.\-]\d+)*[a-z]?|[IVXL]{1,6})\b\s*(?P<end>[.:|)–—-]|$)?",
    re.IGNORECASE,
)
TABLE_MARK = "[Table]"

_CELL = 6  # points: drawings nearer than this belong together
_SMALLEST_FIGURE = (40.0, 25.0)  # points
_FEWEST_PATHS = 4  # a single frame or a shade behind text is no figure
_WORDS_OF_PROSE = 6  # in a row without a gap
_PROSE_SHARE = 0.4
_MOST_LABELS_WITHOUT_CAPTION = 60
_CAPTION_DISTANCE = 45.0  # points
_RULE_THICKNESS = 2.5  # points
_SHORTEST_TABLE_RULE = 60.0  # points
_SAME_EDGE = 4.0  # points


def without_drawn_words(page: Page) -> Page:
    """Return the page without labels of figures and cells of ruled tables; a table without a caption leaves a mark."""
    regions = [box for box in _figures(page) if _is_no_prose(_inside(page.words, box), page, box)]
    tables = list(_stacked([box for box in _ruled_tables(page) if _is_grid(_inside(page.words, box))]))
    words = [word for word in page.words if not any(box.holds(word) for box in (*regions, *tables))]
    for box in tables:
        if not _has_caption(page, box):
            size = typical_size(page.words)
            words.append(
                Word(box.left, box.top, box.right, box.bottom, TABLE_MARK, box.middle, size, False, False, True)
            )
    return replace(page, words=words)


def _inside(words: Sequence[Word], box: Box) -> list[Word]:
    return [word for word in words if box.holds(word)]


def _figures(page: Page) -> Iterator[Box]:
    """Yield groups of drawings that are large and many enough to be a figure."""
    for group in _groups(page.drawings):
        box = around(group)
        width, height = _SMALLEST_FIGURE
        is_figure = len(group) >= _FEWEST_PATHS or any(not drawing.is_path for drawing in group)
        if box.width >= width and box.height >= height and is_figure:
            # Labels stand a little outside of their axes.
            yield Box(box.left - 2 * _CELL, box.top - _CELL, box.right + _CELL, box.bottom + _CELL)


def _groups(drawings: Sequence[Drawing]) -> Iterator[list[Drawing]]:
    """Group drawings that touch, by painting them on a coarse grid; rules of a page's width do not tie others."""
    painted: dict[tuple[int, int], list[int]] = {}
    for index, drawing in enumerate(drawings):
        for cell in _cells(drawing):
            painted.setdefault(cell, []).append(index)
    left = set(painted)
    while left:
        members: set[int] = set()
        edge = [left.pop()]
        while edge:
            x, y = edge.pop()
            members.update(painted[x, y])
            near = {(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge.extend(near)
        yield [drawings[index] for index in sorted(members)]


def _cells(box: Box) -> Iterator[tuple[int, int]]:
    """Cells on the outline of a box: what stands inside of it is found by its own outline."""
    columns = range(int(box.left // _CELL), int(box.right // _CELL) + 1)
    rows = range(int(box.top // _CELL), int(box.bottom // _CELL) + 1)
    for x in columns:
        for y in rows:
            yield x, y


def _is_no_prose(words: Sequence[Word], page: Page, box: Box) -> bool:
    """Labels are short; a box around a paragraph or a listing is drawn too, but its text is to be read."""
    is_code = sum(word.is_typewriter for word in words) * 2 > len(words)
    if not words or is_code or _prose_share(words) > _PROSE_SHARE:
        return False
    return len(words) <= _MOST_LABELS_WITHOUT_CAPTION or _has_caption(page, box)


def _prose_share(words: Sequence[Word]) -> float:
    """Share of the words that stand in a row of several without a gap."""
    lines = make_lines(words, page=0, column=around(words))
    lengths = [len(cell.split()) for line in lines for cell in line.cells]
    return sum(length for length in lengths if length >= _WORDS_OF_PROSE) / max(1, sum(lengths))


def _has_caption(page: Page, box: Box) -> bool:
    """Whether words such as `Figure 3` stand above or below."""
    for index, word in enumerate(page.words):
        is_near = box.top - _CAPTION_DISTANCE <= word.middle <= box.bottom + _CAPTION_DISTANCE
        # A caption may begin left of what it describes.
        is_above_or_below = box.left - 3 * _CAPTION_DISTANCE < word.right and word.left < box.right
        if (
            is_near
            and is_above_or_below
            and not box.holds(word)
            and CAPTION.match(joined(page.words[index : index + 3]))
        ):
            return True
    return False


def _ruled_tables(page: Page) -> Iterator[Box]:
    """Yield what stands between the first and the last of horizontal rules of the same width."""
    rules = sorted(
        (box for box in page.drawings if box.height <= _RULE_THICKNESS and box.width >= _SHORTEST_TABLE_RULE),
        key=lambda box: box.top,
    )
    while rules:
        first = rules[0]
        same = [
            rule
            for rule in rules
            if abs(rule.left - first.left) <= _SAME_EDGE and abs(rule.right - first.right) <= _SAME_EDGE
        ]
        rules = [rule for rule in rules if rule not in same]
        for above, below in itertools.pairwise(same):
            yield Box(first.left - 2, above.top - 1, first.right + 2, below.bottom + 1)


def _stacked(boxes: Sequence[Box]) -> Iterator[Box]:
    """Put boxes that touch one another from above together."""
    joined_box: Box | None = None
    for box in boxes:
        if joined_box is not None and box.left == joined_box.left and abs(box.top - joined_box.bottom) <= _SAME_EDGE:
            joined_box = around([joined_box, box])
            continue
        if joined_box is not None:
            yield joined_box
        joined_box = box
    if joined_box is not None:
        yield joined_box


def _is_grid(words: Sequence[Word]) -> bool:
    """Most rows of a table have cells, with gaps between that no prose has; two columns of prose have long ones."""
    if not words or _prose_share(words) > _PROSE_SHARE:
        return False
    lines = make_lines(words, page=0, column=around(words))
    return sum(len(line.cells) >= 2 for line in lines) * 2 > len(lines)
