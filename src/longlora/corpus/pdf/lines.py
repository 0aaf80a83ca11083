"""Assemble words into lines."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from statistics import median
from typing import TypeVar

from longlora.corpus.pdf.words import Box, Word, around

Item = TypeVar("Item")

# In units of the type size.
_CELL_GAP = 1.1
_SCRIPT_SHIFT = 0.45  # of a superscript or subscript from its line; lines are at least 1 apart
_RAISED = 0.15
_STACKED = 0.5  # how far to the left of its superscript a subscript may begin
_INITIAL_SIZE = 1.8
_MOST_PARTED = 0.05  # share of the pairs of words
_FEWEST_PARTED = 3


@dataclass(frozen=True)
class Line:
    """A line of words, from left to right."""

    words: Sequence[Word]
    page: int
    right: float  # edge of the line's column, which shows whether the line is short

    @cached_property
    def box(self) -> Box:
        """The area that the line covers."""
        return around(self.words)

    @cached_property
    def size(self) -> float:
        """Type size of most characters, in points."""
        return typical_size(self.words)

    @cached_property
    def baseline(self) -> float:
        """Median baseline of the characters, in points from the top."""
        return median(word.baseline for word in self.words for _ in word.text)

    @cached_property
    def is_bold(self) -> bool:
        """Whether all words are bold."""
        return all(word.is_bold for word in self.words)

    @cached_property
    def is_code(self) -> bool:
        """Whether all words are in a monospaced font."""
        return all(word.is_typewriter for word in self.words)

    @cached_property
    def text(self) -> str:
        """The words, joined."""
        return joined(self.words)

    @cached_property
    def cells(self) -> list[str]:
        """The parts between gaps that are too wide for spaces in prose."""
        return [joined(cell) for cell in split(self.words, lambda one, other: _is_wide(one, other, self.size))]

    def is_raised(self, word: Word) -> bool:
        """Return whether a word is raised above the line in smaller type, like the mark of a footnote."""
        return word.size < 0.9 * self.size and self.baseline - word.baseline > _RAISED * self.size


def split(items: Sequence[Item], parts: Callable[[Item, Item], bool]) -> Iterator[list[Item]]:
    """Split a sequence between neighbors for which `parts` is true."""
    run: list[Item] = []
    for item in items:
        if run and parts(run[-1], item):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _is_wide(word: Word, following: Word, size: float) -> bool:
    return following.left - word.right >= _CELL_GAP * size


def typical_size(words: Iterable[Word]) -> float:
    """Return the most common type size, by characters, rounded to half a point; 0 without words."""
    counts: Counter[float] = Counter()
    for word in words:
        counts[round(word.size * 2) / 2] += len(word.text)
    return max(counts, key=lambda size: counts[size], default=0.0)


def joined(words: Iterable[Word]) -> str:
    """Join words of a line, with spaces where pdfium has them."""
    return "".join(word.text + " " * word.ends_at_space for word in words).rstrip()


def make_lines(words: Sequence[Word], *, page: int = 0) -> list[Line]:
    """Assemble the words of one column, given in pdfium's order, into lines from top to bottom."""
    placed = _with_initials_set_down(words)
    right = max((word.right for word in words), default=0.0)
    rows: list[list[int]] = []
    size = baseline = 0.0
    for index in sorted(range(len(placed)), key=lambda index: placed[index].baseline):
        word = placed[index]
        if not rows or word.baseline - baseline > _SCRIPT_SHIFT * max(word.size, size):
            rows.append([])
            size = 0.0
        rows[-1].append(index)
        # The line's position is that of its main type, not of a superscript that came first.
        if word.size >= size:
            size, baseline = word.size, word.baseline
    return [Line(_side_by_side([placed[index] for index in sorted(row)]), page, right) for row in rows]


def _side_by_side(words: Sequence[Word]) -> list[Word]:
    """Order words from left to right, keeping sequences from one of pdfium's lines together where possible."""
    ordered: list[Word] = []
    units = split(words, lambda one, other: one.row != other.row or other.left < one.left - _STACKED * one.size)
    for unit in sorted(units, key=lambda unit: unit[0].left):
        place = next((index for index, word in enumerate(ordered) if word.left > unit[0].left), len(ordered))
        ordered[place:place] = unit
    return ordered


def pdfium_lines(words: Sequence[Word], *, page: int) -> list[Line]:
    """Return pdfium's own lines, in its order."""
    right = max((word.right for word in words), default=0.0)
    return [Line(row, page, right) for row in split(words, lambda one, other: one.row != other.row)]


def parts_words(lines: Iterable[Line], words: Sequence[Word]) -> bool:
    """Return whether lines separate more than a few percent of the words that are adjacent in pdfium's lines."""
    beside = Counter(
        (one.text, other.text) for one, other in pairwise(words) if one.row == other.row and _is_beside(one, other)
    )
    parted = beside - Counter((one.text, other.text) for line in lines for one, other in pairwise(line.words))
    return parted.total() > max(_FEWEST_PARTED, _MOST_PARTED * beside.total())


def _is_beside(word: Word, following: Word) -> bool:
    """Return whether two words are adjacent in a line of prose, not parts of a formula or cells of a table."""
    is_alike = abs(word.baseline - following.baseline) < 0.1 * word.size > abs(word.size - following.size)
    return is_alike and following.left - word.left >= 0 and not _is_wide(word, following, word.size)


def _with_initials_set_down(words: Sequence[Word]) -> list[Word]:
    """Move drop caps, large initials beside several lines, to the first of these lines."""
    size = typical_size(words)
    placed = {id(word): word for word in words}
    for word in words:
        if len(word.text) > 2 or word.size <= _INITIAL_SIZE * size or not word.text.isalpha():
            continue
        beside = [
            other
            for other in words
            if other.size < word.size / 1.5
            and 0 <= other.left - word.right < 2 * size
            and word.top < other.baseline <= word.baseline + 0.1 * size
        ]
        if len({other.baseline for other in beside}) > 1:
            first = min(other.baseline for other in beside)
            placed[id(word)] = replace(
                word, top=first - size, bottom=first, baseline=first, size=size, ends_at_space=False
            )
            # The lines beside it do not count as indented.
            placed |= {id(other): replace(other, left=word.left) for other in beside if other.baseline > first}
    return list(placed.values())
