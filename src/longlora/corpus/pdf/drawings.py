"""Figures and ruled tables: where they stand, and which words are their labels and cells rather than text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from longlora.corpus.pdf.lines import joined, make_lines, split, typical_size
from longlora.corpus.pdf.pdfium import Box, Drawing, Page, Word, around

CAPTION = re.compile(
    r"(?P<kind>figure|fig\.?|table|tab\.?|scheme|plate|chart|algorithm|listing|exhibit)\s*"
    r"(?P<number>[A-Z]?\d+(?:[.\-]\d+)*[a-z]?|[IVXL]{1,6})\b\s*(?P<end>[.:|)–—-]|$)?",
    re.IGNORECASE,
)
TABLE_MARK = "[Table]"

_FEWEST_PATHS = 4  # a single frame or a shade behind text is no figure
_WORDS_OF_PROSE = 6  # in a row without a gap
_PROSE_SHARE = 0.4
_MOST_LABELS_WITHOUT_CAPTION = 60
# In points.
_CELL = 6  # drawings nearer than this belong together
_SMALLEST_FIGURE = (40.0, 25.0)
_CAPTION_DISTANCE = 45.0
_RULE_THICKNESS = 2.5
_SHORTEST_TABLE_RULE = 60.0
_SAME_EDGE = 4.0


def without_drawn_words(page: Page) -> Page:
    """Return the page without labels of figures and cells of ruled tables; a table without a caption leaves a mark."""
    figures = [box for box in _figures(page.drawings) if _is_no_prose(_inside(page.words, box), page, box)]
    grids = [box for box in _ruled_boxes(page.drawings) if _is_grid(_inside(page.words, box))]
    tables = [around(stack) for stack in split(grids, lambda one, other: not _touch(one, other))]
    words = [word for word in page.words if not any(box.holds(word) for box in (*figures, *tables))]
    size, row = typical_size(page.words), len(page.words)
    for box in tables:
        if not _has_caption(page, box):
            place = (box.left, box.top, box.right, box.bottom)
            mark = Word(*place, TABLE_MARK, box.middle, size, False, False, ends_at_space=True, row=row)
            # It comes after what pdfium has above it.
            above = [index for index, word in enumerate(words) if word.baseline < box.top and word.left < box.right]
            words.insert(max(above, default=-1) + 1, mark)
    return replace(page, words=words)


def _inside(words: Sequence[Word], box: Box) -> list[Word]:
    return [word for word in words if box.holds(word)]


def _figures(drawings: Sequence[Drawing]) -> Iterator[Box]:
    """Yield groups of drawings that are large and many enough to be a figure."""
    for group in _groups(drawings):
        box = around(group)
        width, height = _SMALLEST_FIGURE
        is_figure = len(group) >= _FEWEST_PATHS or any(not drawing.is_path for drawing in group)
        if box.width >= width and box.height >= height and is_figure:
            # Labels stand a little outside of their axes.
            yield Box(box.left - 2 * _CELL, box.top - _CELL, box.right + _CELL, box.bottom + _CELL)


def _groups(drawings: Sequence[Drawing]) -> Iterator[list[Drawing]]:
    """Group drawings that touch, by painting them on a coarse grid."""
    painted: dict[tuple[int, int], list[int]] = {}
    for index, box in enumerate(drawings):
        for x in range(int(box.left // _CELL), int(box.right // _CELL) + 1):
            for y in range(int(box.top // _CELL), int(box.bottom // _CELL) + 1):
                painted.setdefault((x, y), []).append(index)
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
    # A caption may begin left of what it describes.
    above, below = box.top - _CAPTION_DISTANCE, box.bottom + _CAPTION_DISTANCE
    region = Box(box.left - 3 * _CAPTION_DISTANCE, above, box.right, below)
    return any(
        word.left < region.right
        and word.right > region.left
        and region.top <= word.middle <= region.bottom
        and not box.holds(word)
        and CAPTION.match(joined(page.words[index : index + 3])) is not None
        for index, word in enumerate(page.words)
    )


def _ruled_boxes(drawings: Sequence[Drawing]) -> Iterator[Box]:
    """Yield what stands between horizontal rules of the same width."""
    rules = [box for box in drawings if box.height <= _RULE_THICKNESS and box.width >= _SHORTEST_TABLE_RULE]
    rules.sort(key=lambda box: box.top)
    while rules:
        first = rules[0]
        same = [rule for rule in rules if _share_edges(rule, first)]
        rules = [rule for rule in rules if rule not in same]
        for above, below in pairwise(same):
            yield Box(first.left - 2, above.top - 1, first.right + 2, below.bottom + 1)


def _share_edges(one: Box, other: Box) -> bool:
    return abs(one.left - other.left) <= _SAME_EDGE and abs(one.right - other.right) <= _SAME_EDGE


def _touch(above: Box, below: Box) -> bool:
    return above.left == below.left and abs(below.top - above.bottom) <= _SAME_EDGE


def _is_grid(words: Sequence[Word]) -> bool:
    """Most rows of a table have cells, with gaps between that no prose has; two columns of prose have long ones."""
    if not words or _prose_share(words) > _PROSE_SHARE:
        return False
    lines = make_lines(words, page=0, column=around(words))
    return sum(len(line.cells) >= 2 for line in lines) * 2 > len(lines)
