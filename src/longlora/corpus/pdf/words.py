"""Read a page's words as separated by pdfium, with their positions and type."""

import ctypes
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

_HYPHENS = (0x02, 0xFFFE)  # pdfium's codes for a hyphen at a line's end, without a line break after it
# Codes of TeX's encodings (OT1, T1), as bitmap fonts without letter names pass them through.
_LIGATURES = dict(zip((*range(0x0B, 0x10), *range(0x1B, 0x20)), 2 * ("ff", "fi", "fl", "ffi", "ffl"), strict=True))
# Accents that are printed over their letters, as in TeX's older fonts, and their combining characters.
_ACCENTS = dict(
    zip(
        "`\u00b4\u02c6^\u02dc~\u00a8\u02c7\u02d8\u02d9\u02da\u00af\u02dd\u00b8\u02db",
        "\u0300\u0301\u0302\u0302\u0303\u0303\u0308\u030c\u0306\u0307\u030a\u0304\u030b\u0327\u0328",
        strict=True,
    )
)
_LETTERS_BESIDE_AN_ACCENT = 40  # pdfium may put a high accent only after the word
_PRIVATE_USE = range(0xE000, 0xF900)
_LEAST_SPACE = 0.35  # between words, times the height of a small letter
_LEAST_SIZE = 0.2  # times the letter's height: the largest brackets in formulas are three times their type size
_LEAST_HEIGHT = 0.7  # times the type size: the height of most letters with an ascender
_TYPEWRITER_NAME = re.compile(rb"mono|courier|consol|typewriter|cmtt|lmtt|sftt|menlo|source ?code")
_BOLD_NAME = re.compile(rb"bold|black|heavy|demi|medi$|cmb|bx\d")


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in points, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Horizontal extent, in points."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Vertical extent, in points."""
        return self.bottom - self.top

    @property
    def middle(self) -> float:
        """Vertical center of the box, in points from the top of the page."""
        return (self.top + self.bottom) / 2

    def holds(self, other: "Box") -> bool:
        """Return whether the center of another box is inside."""
        return self.left <= (other.left + other.right) / 2 <= self.right and self.top <= other.middle <= self.bottom


def around(boxes: Iterable[Box]) -> Box:
    """Return the smallest box around others; there must be at least one."""
    lefts, tops, rights, bottoms = zip(*((box.left, box.top, box.right, box.bottom) for box in boxes), strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


@dataclass(frozen=True, slots=True)
class Word(Box):
    """One of pdfium's words, or a part of one with the same baseline and type."""

    text: str
    baseline: float
    size: float
    is_bold: bool
    is_typewriter: bool  # in a monospaced font: usually code
    ends_at_space: bool
    row: int  # the number of its line in pdfium's order
    turn: int = 0  # clockwise quarter turns of the page that make it upright; -1 if it is at another angle


def read_words(page: Any) -> tuple[list[Word], Counter[str]]:
    """Return a page's words in pdfium's order, and the counts of all, unmapped and doubted characters."""
    text = page.get_textpage()
    try:
        reader = _Words(text, View(page))
        return list(reader.read()), reader.counts
    finally:
        text.close()


class View:
    """Converts the file's coordinates, with y upwards and perhaps rotated, to those of the upright page."""

    def __init__(self, page: Any) -> None:
        self._left, self._bottom, self._right, self._top = page.get_bbox()
        self.quarters = page.get_rotation() // 90
        self.width, self.height = page.get_size()

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Convert a point."""
        left, bottom, right, top = x - self._left, y - self._bottom, self._right - x, self._top - y
        return ((left, top), (bottom, left), (right, bottom), (top, right))[self.quarters]

    def box(self, left: float, bottom: float, right: float, top: float) -> Box:
        """Convert a box."""
        x, y = self.point(left, bottom)
        other_x, other_y = self.point(right, top)
        return Box(min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y))


class _Style(NamedTuple):
    """The properties shared by all characters of a text object."""

    baseline: float
    size: float
    is_bold: bool
    is_typewriter: bool
    turn: int


class _Words:
    """Reads a page's words and lines as separated by pdfium."""

    def __init__(self, text: Any, view: View) -> None:
        import pypdfium2

        self.counts: Counter[str] = Counter()
        """Numbers of all characters, of those that are no letter, and of those that pdfium doubts."""
        self._raw, self._text, self._view = pypdfium2.raw, text, view
        self._codes = [self._raw.FPDFText_GetUnicode(text.raw, index) for index in range(text.count_chars())]
        self._styles: dict[int | None, _Style] = {}
        self._sizes: dict[int | None, float] = {}
        self._row = 0
        self._letters: dict[int, str] = {}
        """Replacements of characters, by index: a letter with its accent, and nothing for the accent."""
        for index, code in enumerate(self._codes):
            if chr(code) in _ACCENTS:
                self._compose(index)

    def read(self) -> Iterator[Word]:
        """Yield the words in pdfium's order.

        A word whose type or baseline changes, as before the mark of a note, is yielded in parts.
        """
        letters: list[str] = []
        first = last = 0
        style: _Style | None = None
        for index, code in enumerate(self._codes):
            letter = self._letter(index, code)
            if not letter:
                continue
            here = None if letter.isspace() else self._style_of(index)
            if letters and style and (here is None or _differ(style, here)):
                yield self._word(letters, first, last, style, ends_at_space=here is None)
                letters = []
            if letter == "\n" or (style and here and abs(here.baseline - style.baseline) > 0.5 * style.size):
                self._row += 1
            if here is None:
                continue
            self._count(code, index)
            if not letters:
                first, style = index, here
            letters.append(letter)
            last = index
        if letters and style:
            yield self._word(letters, first, last, style, ends_at_space=True)

    def _letter(self, index: int, code: int) -> str:
        """Return a character's text; empty for control characters."""
        if index in self._letters:
            return self._letters[index]
        if code in _HYPHENS:
            return "-"
        if code == 0xAD and self._is_generated(index):
            return " "
        if code in _LIGATURES and not self._is_generated(index):
            return _LIGATURES[code]
        letter = chr(code)
        return "" if code < 0x20 and not letter.isspace() else letter

    def _is_generated(self, index: int) -> bool:
        return self._raw.FPDFText_IsGenerated(self._text.raw, index) == 1

    def _compose(self, accent: int) -> None:
        """Combine an accent with the letter above or below it."""
        box = self._box(accent, is_tight=True)
        x = (box.left + box.right) / 2
        beside = range(max(0, accent - _LETTERS_BESIDE_AN_ACCENT), min(len(self._codes), accent + 3))
        for index in sorted(beside, key=lambda index: abs(index - accent)):
            letter = self._letters.get(index) or chr(self._codes[index])
            if not letter.isalpha() or letter in _ACCENTS:
                continue
            under = self._box(index, is_tight=True)
            if under.left <= x <= under.right and abs(under.middle - box.middle) < 1.2 * under.height:
                self._letters[index] = letter.replace("\u0131", "i") + _ACCENTS[chr(self._codes[accent])]
                self._letters[accent] = ""
                self._close_gap(accent, under.height)
                return

    def _close_gap(self, accent: int, height: float) -> None:
        """Remove spaces that pdfium inserts next to an accent, if there is none between the letters around it."""
        before, after = accent - 1, accent + 1
        while before > 0 and self._is_generated(before):
            before -= 1
        while after < len(self._codes) - 1 and self._is_generated(after):
            after += 1
        if before >= 0 and after < len(self._codes):
            one, other = self._box(before, is_tight=True), self._box(after, is_tight=True)
            is_beside = -height < other.left - one.right < _LEAST_SPACE * height
            if is_beside and abs(one.bottom - other.bottom) < height:
                self._letters.update(dict.fromkeys(range(before + 1, after), ""))

    def _word(self, letters: list[str], first: int, last: int, style: _Style, *, ends_at_space: bool) -> Word:
        box = around([self._box(first), self._box(last)])
        place = (box.left, box.top, box.right, box.bottom)
        return Word(*place, "".join(letters), *style[:4], ends_at_space=ends_at_space, row=self._row, turn=style.turn)

    def _box(self, index: int, *, is_tight: bool = False) -> Box:
        return self._view.box(*self._text.get_charbox(index, loose=not is_tight))

    def _count(self, code: int, index: int) -> None:
        self.counts["characters"] += 1
        if code in _PRIVATE_USE or code == 0xFFFD:
            self.counts["no letter"] += 1
        elif self._raw.FPDFText_HasUnicodeMapError(self._text.raw, index) == 1:
            self.counts["doubted"] += 1

    def _style_of(self, index: int) -> _Style:
        item = self._raw.FPDFText_GetTextObject(self._text.raw, index)
        address = ctypes.addressof(item.contents) if item else None
        if address is None or address not in self._styles:
            self._styles[address] = self._read_style(index)
        return self._styles[address]

    def _read_style(self, index: int) -> _Style:
        raw, handle = self._raw, self._text.raw
        x, y = ctypes.c_double(), ctypes.c_double()
        raw.FPDFText_GetCharOrigin(handle, index, ctypes.byref(x), ctypes.byref(y))
        matrix = self._matrix(index)
        quarters = math.atan2(matrix.b, matrix.a) / (math.pi / 2)  # of the baseline, as type may be slanted
        turn = (round(quarters) - self._view.quarters) % 4 if abs(quarters - round(quarters)) < 0.07 else -1
        name = ctypes.create_string_buffer(256)
        raw.FPDFText_GetFontInfo(handle, index, name, len(name), None)
        face = name.value.lower()
        # pdfium guesses the weight from stem thickness; the font's name is more reliable.
        is_bold = bool(_BOLD_NAME.search(face)) if face else raw.FPDFText_GetFontWeight(handle, index) >= 600
        baseline = self._view.point(x.value, y.value)[1]
        return _Style(baseline, self._size(index), is_bold, bool(_TYPEWRITER_NAME.search(face)), turn)

    def _size(self, index: int) -> float:
        """Return the type size; bitmap fonts often declare 1, so theirs is derived from the letters' heights."""
        size = self._said_size(index)
        if size > _LEAST_SIZE * self._height(index):
            return size
        font = self._font(index)
        if font not in self._sizes:
            alike = [other for other in range(len(self._codes)) if self._font(other) == font]
            heights = sorted(self._height(other) for other in alike if self._said_size(other) == size)
            self._sizes[font] = heights[int(0.9 * len(heights))] / _LEAST_HEIGHT
        return self._sizes[font]

    def _said_size(self, index: int) -> float:
        matrix = self._matrix(index)
        return abs(self._raw.FPDFText_GetFontSize(self._text.raw, index) * math.hypot(matrix.c, matrix.d)) or 1.0

    def _matrix(self, index: int) -> Any:
        matrix = self._raw.FS_MATRIX()
        self._raw.FPDFText_GetMatrix(self._text.raw, index, ctypes.byref(matrix))
        return matrix

    def _height(self, index: int) -> float:
        return self._box(index, is_tight=True).height

    def _font(self, index: int) -> int | None:
        item = self._raw.FPDFText_GetTextObject(self._text.raw, index)
        font = self._raw.FPDFTextObj_GetFont(item) if item else None
        return ctypes.addressof(font.contents) if font else None


def _differ(one: _Style, other: _Style) -> bool:
    shift, growth = abs(one.baseline - other.baseline), abs(one.size - other.size)
    is_other_type = growth > 0.05 * one.size or one.is_bold != other.is_bold or one.turn != other.turn
    return shift > 0.1 * one.size or is_other_type
