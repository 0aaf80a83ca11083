"""Determine the reading order: pdfium's (the file's), or columns along gutters where that jumps between columns.

A gutter is a strip without words, at least half an em wide and six lines high, with prose on both sides. Anything that
crosses it (a title, an abstract, a wide table) divides the page into bands, which are read from top to bottom. Within a
band, the left side is read before the right; each side is divided again in the same way.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from longlora.corpus.pdf.lines import make_lines, split, typical_size
from longlora.corpus.pdf.pdfium import Page
from longlora.corpus.pdf.words import Box, Word, around

_FEWEST_LINES = 6
_FEWEST_LINES_OF_A_KNOWN_GUTTER = 2
_FEWEST_WORDS_OF_A_LINE = 3.0
# In units of the type size.
_NARROWEST_COLUMN = 8
_NARROWEST_GUTTER = 0.5
_NARROWEST_KNOWN_GUTTER = 0.8  # wider, since within few lines, spaces may be aligned by chance
_SAME_LINE = 2.0  # how far up pdfium may move within a formula
_SAME_PLACE = 6.0  # points by which a gutter may move from page to page
_FEWEST_WORDS_OF_A_COLUMN = 60


def find_gutters(pages: Sequence[Page]) -> list[float]:
    """Return the positions, in points from the left, at which several pages have a gutter."""
    gutters = (_best_gutter(page.words, []) for page in pages if not page.is_scattered)
    found = [(gutter.left + gutter.right) / 2 for gutter in gutters if gutter]
    return [x for x in found if sum(abs(x - other) <= _SAME_PLACE for other in found) >= 2]


def reading_order(words: Sequence[Word], known_gutters: Sequence[float] = ()) -> list[list[Word]]:
    """Return the words of a page by column, in reading order; gutters known from other pages need less evidence."""
    gutters: list[Box] = []
    by_gutters = list(_cut(words, known_gutters, gutters))
    in_file = list(_runs(words, gutters))
    return in_file if len(in_file) <= 2 * len(by_gutters) + 1 and not _goes_back(in_file) else by_gutters


@dataclass(frozen=True)
class _Piece:
    """Words that are read one after the other, and the box around them."""

    words: list[Word]
    box: Box


def _runs(words: Sequence[Word], gutters: Sequence[Box]) -> Iterator[list[Word]]:
    """Split pdfium's order where it moves up the page or across a gutter; short pieces stay with adjacent text."""
    runs: list[list[_Piece]] = []
    for part in split(words, lambda one, other: one.row != other.row or _are_parted([one], [other], gutters)):
        piece = _Piece(part, around(part))
        for index in range(len(runs) - 1, -1, -1):
            after = [*itertools.chain(*runs[index + 1 :]), piece]
            if _is_next(runs[index], piece) and not _are_parted(_boxes(runs[index]), _boxes(after), gutters):
                runs[index:] = [runs[index] + after]
                break
            if sum(len(other.words) for other in runs[index]) >= _FEWEST_WORDS_OF_A_COLUMN:
                runs.append([piece])
                break
        else:
            runs.append([piece])
    for run in runs:
        yield [word for piece in run for word in piece.words]


def _is_next(run: Sequence[_Piece], piece: _Piece) -> bool:
    """Return whether a piece is next to the end of a run or below it."""
    last, word, box = run[-1].words[-1], piece.words[0], around(_boxes(run))
    is_below = piece.box.left < box.right and piece.box.right > box.left
    is_beside = abs(word.baseline - last.baseline) < 0.5 * last.size
    return is_beside or (is_below and word.baseline > last.baseline - _SAME_LINE * last.size)


def _boxes(pieces: Iterable[_Piece]) -> list[Box]:
    return [piece.box for piece in pieces]


def _are_parted(some: Sequence[Box], others: Sequence[Box], gutters: Sequence[Box]) -> bool:
    """Return whether a gutter has boxes on both of its sides."""
    for gutter in gutters:
        sides = [
            {box.right <= gutter.left + 1 for box in boxes if gutter.top <= box.middle <= gutter.bottom}
            for boxes in (some, others)
        ]
        if len(sides[0] | sides[1]) > 1:
            return True
    return False


def _goes_back(runs: Sequence[Sequence[Word]]) -> bool:
    """Return whether any long run is neither to the right of its predecessor in the file nor below it."""
    boxes = [around(run) for run in runs if len(run) >= _FEWEST_WORDS_OF_A_COLUMN]
    return any(box.left <= before.left + 1 and box.top < before.top for before, box in itertools.pairwise(boxes))


def _cut(words: Sequence[Word], known: Sequence[float], found: list[Box]) -> Iterator[list[Word]]:
    """Split into columns along gutters, which are added to `found`."""
    gutter = _best_gutter(words, known)
    if gutter is None:
        if words:
            yield list(words)
        return
    for band, is_crossed in _bands(words, gutter):
        if not is_crossed:
            box = around(band)
            found.append(Box(gutter.left, box.top, gutter.right, box.bottom))
            yield from _cut([word for word in band if word.right <= gutter.right + 1], known, found)
            yield from _cut([word for word in band if word.right > gutter.right + 1], known, found)
        elif len(band) < len(words):
            yield from _cut(band, known, found)
        else:
            yield band


def _bands(words: Sequence[Word], gutter: Box) -> Iterator[tuple[list[Word], bool]]:
    """Yield bands from top to bottom, each with whether its text crosses the gutter."""
    left, right = gutter.left + 0.25 * gutter.width, gutter.right - 0.25 * gutter.width
    # A word or a note's mark may stick out of its column a little, which leaves at least half of the gutter white.
    crossing = [word for word in words if word.left < right and word.right > left + 0.25 * gutter.width]
    edges: list[list[float]] = []
    for top, bottom in sorted((word.top, word.bottom) for word in crossing):
        # The gap between lines of one block is less than their height.
        if edges and top - edges[-1][1] < 0.8 * (bottom - top) and not _has_columns(words, gutter, edges[-1][1], top):
            edges[-1][1] = max(edges[-1][1], bottom)
        else:
            edges.append([top, bottom])
    start = float("-inf")
    for top, bottom in [*edges, [float("inf"), float("inf")]]:
        for low, high, is_crossed in ((start, top, False), (top, bottom, True)):
            if band := [word for word in words if low <= word.middle < high]:
                yield band, is_crossed
        start = bottom


def _has_columns(words: Sequence[Word], gutter: Box, top: float, bottom: float) -> bool:
    inside = [word for word in words if top <= word.middle < bottom]
    return any(word.right <= gutter.left for word in inside) and any(word.left >= gutter.right for word in inside)


def _best_gutter(words: Sequence[Word], known: Sequence[float]) -> Box | None:
    """Return the gutter that divides the most lines, or None."""
    size = typical_size(words)
    page = around(words) if words else Box(0, 0, 0, 0)
    if size == 0 or page.width < 2 * _NARROWEST_COLUMN * size:
        return None
    # Draw the words on a grid of points, high enough that lines touch: the white between them is no gap.
    grid = np.zeros((int(page.height + size) + 2, int(page.width) + 2), dtype=bool)
    for word in words:
        top, bottom = int(max(0.0, word.top - page.top)), int(word.bottom - page.top + 0.4 * size) + 1
        grid[top:bottom, int(word.left - page.left) : int(np.ceil(word.right - page.left))] = True
    rejected: list[Box] = []
    for x, top, bottom, is_known in _candidates(grid, size, [place - page.left for place in known]):
        if any(gutter.left - page.left <= x < gutter.right - page.left for gutter in rejected):
            continue
        blocked = np.flatnonzero(np.any(grid[top:bottom], axis=0))
        left = max(blocked[blocked < x], default=-1) + 1
        right = min(blocked[blocked > x], default=grid.shape[1])
        gutter = Box(page.left + left, page.top + top, page.left + right, page.top + bottom)
        is_believed = is_known and gutter.width >= _NARROWEST_KNOWN_GUTTER * size
        if is_believed or (gutter.width >= _NARROWEST_GUTTER * size and _is_between_prose(words, gutter)):
            return gutter
        rejected.append(gutter)
    return None


def _candidates(grid: np.ndarray, size: float, known: Sequence[float]) -> list[tuple[int, int, int, bool]]:
    """List vertical white strips with text on both sides, as `(x, top, bottom, is_known)`, the longest first."""
    has_text = grid.any(axis=1)
    leftmost = np.where(has_text, grid.argmax(axis=1), grid.shape[1])
    rightmost = np.where(has_text, grid.shape[1] - 1 - grid[:, ::-1].argmax(axis=1), -1)
    edges = np.diff(np.pad(grid, ((1, 1), (0, 0)), constant_values=True), axis=0)
    found = []
    for x in range(int(_NARROWEST_COLUMN * size), int(grid.shape[1] - _NARROWEST_COLUMN * size)):
        is_known = any(abs(x - place) <= _SAME_PLACE / 2 for place in known)
        least = (_FEWEST_LINES_OF_A_KNOWN_GUTTER if is_known else _FEWEST_LINES) * size
        changes = np.flatnonzero(edges[:, x]).tolist()
        for top, bottom in zip(changes[::2], changes[1::2], strict=True):
            if bottom - top < least:
                continue
            # The side with less text determines how much the strip divides.
            support = min((leftmost[top:bottom] < x).sum(), (rightmost[top:bottom] > x).sum())
            if support >= least:
                found.append((int(support), x, top, bottom, is_known))
    return [candidate[1:] for candidate in sorted(found, key=lambda candidate: (-candidate[0], candidate[1]))]


def _is_between_prose(words: Sequence[Word], gutter: Box) -> bool:
    """Return whether both sides have several words per line, unlike tables, tables of contents or formulas."""
    beside = [word for word in words if gutter.top <= word.middle <= gutter.bottom]
    left = [word for word in beside if word.right <= gutter.left + 1]
    right = [word for word in beside if word.left >= gutter.right - 1]
    return all(side and median(_widest_cells(side)) >= _FEWEST_WORDS_OF_A_LINE for side in (left, right))


def _widest_cells(words: Sequence[Word]) -> list[int]:
    return [max(len(cell.split()) for cell in line.cells) for line in make_lines(words)]
