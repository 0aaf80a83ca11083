"""Reading order: a page is cut along its gutters, the strips of white that run down between columns.

A gutter is found by where words are not: a strip at least half an em wide and six lines high, with prose on both sides.
What crosses it (a title, an abstract, a wide table) cuts the page into bands that are read from top to bottom; within a
band the left side is read before the right, each cut again in the same way.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from longlora.corpus.pdf.lines import make_lines, typical_size
from longlora.corpus.pdf.page import Box, Page, Word

_FEWEST_LINES = 6
_FEWEST_LINES_OF_A_KNOWN_GUTTER = 2
_FEWEST_WORDS_OF_A_LINE = 3.0
_NARROWEST_COLUMN = 8  # sizes of type
_NARROWEST_GUTTER = 0.5  # sizes of type
_NARROWEST_KNOWN_GUTTER = 0.8  # sizes of type: fewer lines must be told from spaces that stand above one another
_SAME_PLACE = 6.0  # points by which a gutter may move from page to page


@dataclass(frozen=True)
class Column:
    """Words that are read from top to bottom, within the box that they stand in."""

    words: list[Word]
    box: Box


@dataclass(frozen=True)
class Gutter(Box):
    """A strip without words between two columns."""


def find_gutters(pages: Sequence[Page]) -> list[float]:
    """Return the places, in points from the left, at which several pages have a gutter."""
    found: list[float] = []
    for page in pages:
        gutter = _best_gutter(page.words, [])
        if gutter is not None:
            found.append((gutter.left + gutter.right) / 2)
    return [x for x in found if sum(abs(x - other) <= _SAME_PLACE for other in found) >= 2]


def reading_order(words: Sequence[Word], known_gutters: Sequence[float] = ()) -> Iterator[Column]:
    """Yield the columns of a page as they are read; a gutter of other pages is believed on less evidence."""
    if not words:
        return
    gutter = _best_gutter(words, known_gutters)
    if gutter is None:
        yield Column(list(words), around(words))
        return
    for band, is_crossed in _bands(words, gutter):
        if not is_crossed:
            left = [word for word in band if word.right <= gutter.right + 1]
            yield from reading_order(left, known_gutters)
            yield from reading_order([word for word in band if word.right > gutter.right + 1], known_gutters)
        elif len(band) < len(words):
            yield from reading_order(band, known_gutters)
        else:
            yield Column(band, around(band))


def around(boxes: Iterable[Box]) -> Box:
    """Return the smallest box around others, of which there must be one."""
    boxes = list(boxes)
    return Box(
        min(box.left for box in boxes),
        min(box.top for box in boxes),
        max(box.right for box in boxes),
        max(box.bottom for box in boxes),
    )


def _bands(words: Sequence[Word], gutter: Gutter) -> Iterator[tuple[list[Word], bool]]:
    """Cut into bands from top to bottom, and tell of each whether its text crosses the gutter."""
    left, right = gutter.left + 0.25 * gutter.width, gutter.right - 0.25 * gutter.width
    touching = [word for word in words if word.left < right and word.right > left]
    crossing = sorted((word.top, word.bottom) for word in touching if not _is_overlong(word, words, gutter))
    edges: list[list[float]] = []
    for top, bottom in crossing:
        # Lines of one block are less than their own height apart.
        if edges and top - edges[-1][1] < 0.8 * (bottom - top) and not _has_columns(words, gutter, edges[-1][1], top):
            edges[-1][1] = max(edges[-1][1], bottom)
        else:
            edges.append([top, bottom])
    # What a last heading belongs to is on the next page, and as wide as that.
    edges.append([float("inf"), float("inf")])
    end = max(word.bottom for word in words) + 1
    for edge in edges:
        edge[0] = min((word.top for word in _heading_above(words, min(edge[0], end), gutter)), default=edge[0])
    start = float("-inf")
    for top, bottom in edges:
        for low, high, is_crossed in ((start, top, False), (top, bottom, True)):
            if band := [word for word in words if low <= word.middle < high]:
                yield band, is_crossed
        start = bottom


def _heading_above(words: Sequence[Word], top: float, gutter: Gutter) -> list[Word]:
    """Find a heading right above text that crosses the gutter: it is too short to cross, but belongs to that text."""
    size = typical_size(words)
    above = [word for word in words if top - 4 * size <= word.bottom <= top + 0.5 * size]
    if not above:
        return []
    lowest = max(word.baseline for word in above)
    row = [word for word in above if abs(word.baseline - lowest) < 0.3 * size]
    is_heading = all(word.right < gutter.left and (word.is_bold or word.size > 1.1 * size) for word in row)
    between = [
        word for word in words if word not in row and word.baseline < lowest and word.bottom > lowest - 1.8 * size
    ]
    return row if is_heading and not between else []


def _is_overlong(word: Word, words: Sequence[Word], gutter: Gutter) -> bool:
    """Tell whether a word, or a note's mark, ends a line that is a little too long for its column."""
    # At least half of the gutter stays white, which is wider than a space of prose.
    if word.right > gutter.left + 0.5 * gutter.width:
        return False
    beside = (other for other in words if other.top < word.baseline < other.bottom and other.left >= word.right)
    return min((other.left for other in beside), default=gutter.right) >= gutter.right - 1


def _has_columns(words: Sequence[Word], gutter: Gutter, top: float, bottom: float) -> bool:
    inside = [word for word in words if top <= word.middle < bottom]
    return any(word.right <= gutter.left for word in inside) and any(word.left >= gutter.right for word in inside)


def _best_gutter(words: Sequence[Word], known: Sequence[float]) -> Gutter | None:
    """Find the gutter beside most lines."""
    size = typical_size(words)
    page = around(words) if words else Box(0, 0, 0, 0)
    if size == 0 or page.width < 2 * _NARROWEST_COLUMN * size:
        return None
    grid = _occupancy(words, page, size)
    rejected: list[Gutter] = []
    for x, top, bottom, is_known in _candidates(grid, size, [place - page.left for place in known]):
        if any(gutter.left - page.left <= x < gutter.right - page.left for gutter in rejected):
            continue
        gutter = _widened(grid, x, top, bottom, page)
        is_believed = is_known and gutter.width >= _NARROWEST_KNOWN_GUTTER * size
        if is_believed or (gutter.width >= _NARROWEST_GUTTER * size and _is_between_prose(words, gutter)):
            return gutter
        rejected.append(gutter)
    return None


def _candidates(grid: np.ndarray, size: float, known: Sequence[float]) -> list[tuple[int, int, int, bool]]:
    """List where white runs down beside text on both sides, as `(x, top, bottom, is_known)`, the longest first."""
    has_text = grid.any(axis=1)
    leftmost = np.where(has_text, grid.argmax(axis=1), grid.shape[1])
    rightmost = np.where(has_text, grid.shape[1] - 1 - grid[:, ::-1].argmax(axis=1), -1)
    found = []
    for x in range(int(_NARROWEST_COLUMN * size), int(grid.shape[1] - _NARROWEST_COLUMN * size)):
        is_known = any(abs(x - place) <= _SAME_PLACE / 2 for place in known)
        least = (_FEWEST_LINES_OF_A_KNOWN_GUTTER if is_known else _FEWEST_LINES) * size
        for top, bottom in _free_runs(grid[:, x]):
            if bottom - top >= least:
                # The side with less text says how much the strip divides.
                support = min((leftmost[top:bottom] < x).sum(), (rightmost[top:bottom] > x).sum())
                if support >= least:
                    found.append((int(support), x, top, bottom, is_known))
    return [candidate[1:] for candidate in sorted(found, key=lambda candidate: (-candidate[0], candidate[1]))]


def _occupancy(words: Sequence[Word], page: Box, size: float) -> np.ndarray:
    """Draw the words on a grid of points; lines touch, so that the white between them is not taken for a gap."""
    grid = np.zeros((int(page.height + size) + 2, int(page.width) + 2), dtype=bool)
    for word in words:
        top, bottom = int(max(0.0, word.top - page.top)), int(word.bottom - page.top + 0.4 * size) + 1
        grid[top:bottom, int(word.left - page.left) : int(np.ceil(word.right - page.left))] = True
    return grid


def _free_runs(column: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each run of False."""
    changes = np.flatnonzero(np.diff(np.concatenate(([True], column, [True])).astype(np.int8)))
    for begin, end in zip(changes[::2], changes[1::2], strict=True):
        yield int(begin), int(end)


def _widened(grid: np.ndarray, x: int, top: int, bottom: int, page: Box) -> Gutter:
    free = np.logical_not(np.any(grid[top:bottom], axis=0))
    left = right = x
    while left > 0 and free[left - 1]:
        left -= 1
    while right + 1 < grid.shape[1] and free[right + 1]:
        right += 1
    return Gutter(page.left + left, page.top + top, page.left + right + 1, page.top + bottom)


def _is_between_prose(words: Sequence[Word], gutter: Gutter) -> bool:
    """Columns of prose have several words to a line; those of a table, a list of contents or a formula have not."""
    beside = [word for word in words if gutter.top <= word.middle <= gutter.bottom]
    for side in (
        [word for word in beside if word.right <= gutter.left + 1],
        [word for word in beside if word.left >= gutter.right - 1],
    ):
        if not side:
            return False
        lines = make_lines(side, page=0, column=gutter)
        widest_cells = [max(len(cell.split()) for cell in line.cells) for line in lines]
        if median(widest_cells) < _FEWEST_WORDS_OF_A_LINE:
            return False
    return True
