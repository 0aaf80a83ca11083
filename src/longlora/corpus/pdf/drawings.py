"""Find figures, and the words that are their labels rather than text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from longlora.corpus.pdf.lines import joined, make_lines
from longlora.corpus.pdf.pdfium import Drawing, Page
from longlora.corpus.pdf.words import Box, Word, around

CAPTION = re.compile(
    r"(?P<kind>figure|fig\.?|table|tab\.?|scheme|plate|chart|algorithm|listing|exhibit)\s*"
    r"(?P<number>[A-Z]?\d+(?:[.\-]\d+)*[a-z]?|[IVXL]{1,6})\b\s*(?P<end>[.:|)–—-]|$)?",
    re.IGNORECASE,
)
_FEWEST_PATHS = 4  # a single frame, or shading behind text, is not a figure
_WORDS_OF_PROSE = 6  # in sequence, without a wide gap
_PROSE_SHARE = 0.4
_MOST_CELLS = 2_000_000  # covered by all drawings of a page; above that, the whole page is a drawing
# In points.
_CELL = 6  # drawings closer than this belong together
_SMALLEST_FIGURE = (40.0, 25.0)
_CAPTION_DISTANCE = 45.0


def without_labels(page: Page) -> tuple[Page, list[Word]]:
    """Return the page without its figures' labels, and the labels."""
    num_cells = sum((box.width / _CELL + 2) * (box.height / _CELL + 2) for box in page.drawings)
    if page.is_scattered or num_cells > _MOST_CELLS:
        return page, []
    figures = [box for box in _figures(page.drawings) if _is_figure(box, page)]
    kept: list[Word] = []
    labels: list[Word] = []
    for word in page.words:
        (labels if any(box.holds(word) for box in figures) else kept).append(word)
    return replace(page, words=kept), labels


def _figures(drawings: Sequence[Drawing]) -> Iterator[Box]:
    """Yield the boxes of groups of drawings that are large and numerous enough to be figures."""
    for group in _groups(drawings):
        box = around(group)
        width, height = _SMALLEST_FIGURE
        is_figure = len(group) >= _FEWEST_PATHS or any(not drawing.is_path for drawing in group)
        if box.width >= width and box.height >= height and is_figure:
            # Labels extend a little beyond the axes.
            yield Box(box.left - 2 * _CELL, box.top - _CELL, box.right + _CELL, box.bottom + _CELL)


def _groups(drawings: Sequence[Drawing]) -> Iterator[list[Drawing]]:
    """Group touching drawings, by painting them on a coarse grid."""
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


def _is_figure(box: Box, page: Page) -> bool:
    """Return whether a box has a caption and contains short labels, rather than framing prose or a listing."""
    words = [word for word in page.words if box.holds(word)]
    is_code = sum(word.is_typewriter for word in words) * 2 > len(words)
    return bool(words) and not is_code and _prose_share(words) <= _PROSE_SHARE and _has_caption(page, box)


def _prose_share(words: Sequence[Word]) -> float:
    """Return the share of words that are in longer sequences without a wide gap."""
    lengths = [len(cell.split()) for line in make_lines(words) for cell in line.cells]
    return sum(length for length in lengths if length >= _WORDS_OF_PROSE) / max(1, sum(lengths))


def _has_caption(page: Page, box: Box) -> bool:
    """Return whether there is text such as `Figure 3` above or below."""
    # A caption may begin to the left of its figure.
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
