"""Words to lines: which words stand side by side, and where between them a space belongs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median

from longlora.corpus.pdf.page import Box, Word

# In units of the size of type. Spaces are a quarter of it or more, kerning and italic correction less than a tenth.
_SPACE = 0.16
_CELL_GAP = 1.1
# How far a superscript or subscript may stand from its line; lines are at least one size apart.
_SCRIPT_SHIFT = 0.45
_RAISED = 0.15
_INITIAL_SIZE = 1.8


@dataclass(frozen=True)
class Line:
    """Words side by side, from left to right."""

    words: Sequence[Word]
    page: int
    column: Box
    """The region that the line was found in: its left and right tell an indented or a short line."""

    @cached_property
    def box(self) -> Box:
        """What the line covers."""
        words = self.words
        top, bottom = min(word.top for word in words), max(word.bottom for word in words)
        return Box(words[0].left, top, max(word.right for word in words), bottom)

    @cached_property
    def size(self) -> float:
        """Size of type of most of its characters, in points."""
        return typical_size(self.words)

    @cached_property
    def baseline(self) -> float:
        """Where most of its letters stand."""
        return median(word.baseline for word in self.words for _ in word.text)

    @cached_property
    def is_bold(self) -> bool:
        """Whether all of it is."""
        return all(word.is_bold for word in self.words)

    @cached_property
    def is_code(self) -> bool:
        """Whether all of it is in a typewriter's face."""
        return all(word.is_typewriter for word in self.words)

    @cached_property
    def text(self) -> str:
        """The line as it is read."""
        return joined(self.words)

    @cached_property
    def cells(self) -> list[str]:
        """The parts between gaps too wide for a space of prose."""
        cells: list[list[Word]] = []
        for word in self.words:
            if cells and word.left - cells[-1][-1].right < _CELL_GAP * self.size:
                cells[-1].append(word)
            else:
                cells.append([word])
        return [joined(cell) for cell in cells]

    def is_raised(self, word: Word) -> bool:
        """Whether a word stands above the line in smaller type, as the mark of a footnote does."""
        return word.size < 0.9 * self.size and self.baseline - word.baseline > _RAISED * self.size


def typical_size(words: Iterable[Word]) -> float:
    """Return the size of type that most characters have, to half a point; 0 without words."""
    counts: dict[float, int] = {}
    for word in words:
        size = round(word.size * 2) / 2
        counts[size] = counts.get(size, 0) + len(word.text)
    return max(counts, key=lambda size: counts[size], default=0.0)


def joined(words: Sequence[Word]) -> str:
    """Join words of a line, with a space where the file has one or leaves room for one."""
    parts: list[str] = []
    for index, word in enumerate(words):
        parts.append(word.text)
        if index + 1 < len(words):
            gap = words[index + 1].left - word.right
            if word.ends_at_space or gap > _SPACE * min(word.size, words[index + 1].size):
                parts.append(" ")
    return "".join(parts)


def make_lines(words: Iterable[Word], *, page: int, column: Box) -> list[Line]:
    """Put the words of one column together to lines, from top to bottom."""
    rows: list[list[Word]] = []
    baselines: list[float] = []
    for word in sorted(_with_initials_set_down(list(words)), key=lambda word: word.baseline):
        if rows and abs(word.baseline - baselines[-1]) <= _SCRIPT_SHIFT * max(word.size, rows[-1][0].size):
            rows[-1].append(word)
            # The main type decides where the line stands, not a superscript that came first.
            if word.size >= max(other.size for other in rows[-1]):
                baselines[-1] = word.baseline
        else:
            rows.append([word])
            baselines.append(word.baseline)
    return [Line(sorted(row, key=lambda word: word.left), page, column) for row in rows]


def _with_initials_set_down(words: list[Word]) -> list[Word]:
    """A large initial that hangs over several lines belongs to the first of them."""
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
            # The lines beside it are no more indented than those below.
            placed |= {id(other): replace(other, left=word.left) for other in beside if other.baseline > first}
    return list(placed.values())
