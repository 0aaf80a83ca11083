"""A page's words as pdfium separates them, with their places and their type."""

import ctypes
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

_HYPHENS = (0x02, 0xFFFE)  # how pdfium tells a hyphen at a line's end, which no line break follows
# TeX's own encodings (OT1, T1) as they come through fonts drawn in dots, which name no letters.
_LIGATURES = dict(zip((*range(0x0B, 0x10), *range(0x1B, 0x20)), 2 * ("ff", "fi", "fl", "ffi", "ffl"), strict=True))
# An accent that is printed over its letter, as TeX's older fonts have it, and what is written behind the letter.
_ACCENTS = dict(
    zip(
        "`\u00b4\u02c6^\u02dc~\u00a8\u02c7\u02d8\u02d9\u02da\u00af\u02dd\u00b8\u02db",
        "\u0300\u0301\u0302\u0302\u0303\u0303\u0308\u030c\u0306\u0307\u030a\u0304\u030b\u0327\u0328",
        strict=True,
    )
)
_LETTERS_BESIDE_AN_ACCENT = 40  # pdfium may have one that stands high only after the word
_PRIVATE_USE = range(0xE000, 0xF900)
_LEAST_SPACE = 0.35  # between words, in the height of a small letter
_LEAST_SIZE = 0.2  # of type, in the height of a letter: the largest brackets of a formula have three sizes
_LEAST_HEIGHT = 0.7  # of type, in its size: what most letters with an ascender have
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
        """The height at which the box stands on the page, in points from its top."""
        return (self.top + self.bottom) / 2

    def holds(self, other: "Box") -> bool:
        """Tell whether the middle of another box lies inside."""
        return self.left <= (other.left + other.right) / 2 <= self.right and self.top <= other.middle <= self.bottom


def around(boxes: Iterable[Box]) -> Box:
    """Return the smallest box around others, of which there must be one."""
    lefts, tops, rights, bottoms = zip(*((box.left, box.top, box.right, box.bottom) for box in boxes), strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


@dataclass(frozen=True, slots=True)
class Word(Box):
    """One of pdfium's words, or the part of one that stands on one baseline and in one size."""

    text: str
    baseline: float
    size: float
    is_bold: bool
    is_typewriter: bool  # in a face whose letters are all of one width: code, most often
    ends_at_space: bool
    row: int  # which of pdfium's lines it stands in
    turn: int = 0  # quarters to turn the page clockwise so that it stands upright; -1 if no quarter does that


def read_words(page: Any) -> tuple[list[Word], Counter[str]]:
    """Return a page's words in pdfium's order, and how many characters are known and how many are in doubt."""
    text = page.get_textpage()
    try:
        reader = _Words(text, View(page))
        return list(reader.read()), reader.counts
    finally:
        text.close()


class View:
    """Turns the file's coordinates, y upwards and perhaps lying on the side, into the reader's."""

    def __init__(self, page: Any) -> None:
        self._left, self._bottom, self._right, self._top = page.get_bbox()
        self.quarters = page.get_rotation() // 90
        self.width, self.height = page.get_size()

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the file stands."""
        left, bottom, right, top = x - self._left, y - self._bottom, self._right - x, self._top - y
        return ((left, top), (bottom, left), (right, bottom), (top, right))[self.quarters]

    def box(self, left: float, bottom: float, right: float, top: float) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a box of the file."""
        x, y = self.point(left, bottom)
        other_x, other_y = self.point(right, top)
        return min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y)


class _Style(NamedTuple):
    """What is the same for all characters of one text object."""

    baseline: float
    size: float
    is_bold: bool
    is_typewriter: bool
    turn: int


class _Words:
    """Takes a page's words and lines as pdfium separates them."""

    def __init__(self, text: Any, view: View) -> None:
        import pypdfium2

        self.counts: Counter[str] = Counter()
        """Characters, those that are no letter, and those that pdfium doubts."""
        self._raw, self._text, self._view = pypdfium2.raw, text, view
        self._codes = [self._raw.FPDFText_GetUnicode(text.raw, index) for index in range(text.count_chars())]
        self._styles: dict[int | None, _Style] = {}
        self._sizes: dict[int | None, float] = {}
        self._row = 0
        self._letters: dict[int, str] = {}
        """What stands in the place of a character: a letter with its accent, nothing in the place of the accent."""
        for index, code in enumerate(self._codes):
            if chr(code) in _ACCENTS:
                self._compose(index)

    def read(self) -> Iterator[Word]:
        """Yield the words in pdfium's order.

        Where type or baseline change within a word, as before the mark of a note, its parts are yielded one by one.
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
        """What a character says; empty for what is none."""
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
        """Give an accent to the letter that it stands over, or under."""
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
        """Take away the spaces that pdfium sees beside an accent, where there is none between the letters around."""
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
        return Box(*self._view.box(*self._text.get_charbox(index, loose=not is_tight)))

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
        quarters = math.atan2(matrix.b, matrix.a) / (math.pi / 2)  # of its baseline: type may be slanted
        turn = (round(quarters) - self._view.quarters) % 4 if abs(quarters - round(quarters)) < 0.07 else -1
        name = ctypes.create_string_buffer(256)
        raw.FPDFText_GetFontInfo(handle, index, name, len(name), None)
        face = name.value.lower()
        # The weight is a guess from the thickness of stems: a name says more.
        is_bold = bool(_BOLD_NAME.search(face)) if face else raw.FPDFText_GetFontWeight(handle, index) >= 600
        baseline = self._view.point(x.value, y.value)[1]
        return _Style(baseline, self._size(index), is_bold, bool(_TYPEWRITER_NAME.search(face)), turn)

    def _size(self, index: int) -> float:
        """Size of type; that of fonts drawn in dots is often said to be 1, and is told from their letters' heights."""
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
