"""What stands on a page: pdfium's words in pdfium's order, with their places, and drawings."""

import ctypes
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from longlora.corpus.markup import UnreadableFileError

_HYPHENS = (0x02, 0xFFFE)  # how pdfium tells a hyphen at a line's end, which no line break follows
_PRIVATE_USE = range(0xE000, 0xF900)
_BACKGROUND_SHARE = 0.8  # of the page: a drawing as large as this is its background, or a scan of it
_MOST_UNMAPPED_SHARE = 0.2
_TYPEWRITER_NAME = re.compile(rb"mono|courier|consol|typewriter|cmtt|lmtt|sftt|menlo|source ?code")
_BOLD_NAME = re.compile(rb"bold|black|heavy|demi|medi$|cmb|bx\d")
# Far above any document that people wrote, and some GiB of memory.
_MOST_PAGES = 20_000
_MOST_WORDS = 5_000_000
_PERMISSION_ERRORS = {
    4: "encrypted, and it asks for a password: save a copy without one",
    5: "of an unknown encryption",
}


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
    is_typewriter: bool
    """In a face whose letters are all of one width: code, most often."""
    ends_at_space: bool
    row: int
    """Which of pdfium's lines it stands in."""


@dataclass(frozen=True, slots=True)
class Drawing(Box):
    """A path, an image or a group of them."""

    is_path: bool


@dataclass(slots=True)
class Page:
    """Words in pdfium's order, and drawings."""

    number: int
    width: float
    height: float
    words: list[Word]
    drawings: list[Drawing] = field(default_factory=list)
    has_scan: bool = False
    """An image covers the page."""


def read_pages(path: Path) -> tuple[list[Page], dict[str, str]]:
    """Read every page of a PDF, and its metadata.

    Raises:
        UnreadableFileError: empty, truncated, damaged, encrypted, scanned, or in fonts that do not tell their letters.
    """
    import pypdfium2

    _check_whole(path)
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        reason = _PERMISSION_ERRORS.get(error.err_code or 0, "damaged: pdfium finds no document in it")
        raise UnreadableFileError(reason) from error
    counts: Counter[str] = Counter()
    try:
        pages = _read_all(document, counts)
        metadata = document.get_metadata_dict(skip_empty=True)
    except pypdfium2.PdfiumError as error:
        raise UnreadableFileError(f"damaged: {error}") from error
    finally:
        document.close()
    _check_readable(pages, counts)
    return pages, metadata


def _read_all(document: Any, counts: Counter[str]) -> list[Page]:
    if len(document) > _MOST_PAGES:
        raise UnreadableFileError(f"too large: it has more than {_MOST_PAGES:,} pages; split it")
    pages: list[Page] = []
    left = _MOST_WORDS
    for index in range(len(document)):
        pages.append(_read_page(document, index, counts))
        left -= len(pages[-1].words) + len(pages[-1].drawings)
        if left < 0:
            raise UnreadableFileError(f"too large: it has more than {_MOST_WORDS:,} words and drawings; split it")
    return pages


def _check_whole(path: Path) -> None:
    """Refuse what does not begin or end as a PDF; NUL bytes behind the end are the padding of file systems."""
    content = path.read_bytes()
    if not content:
        raise UnreadableFileError("empty: it holds no bytes")
    if b"%PDF-" not in content[:1024]:
        raise UnreadableFileError("no PDF: it does not begin with %PDF")
    if b"%%EOF" not in content.rstrip(b"\0")[-(1 << 16) :]:
        raise UnreadableFileError("truncated: the mark at a PDF's end is missing; fetch it again")


def _check_readable(pages: list[Page], counts: Counter[str]) -> None:
    num_scans = sum(page.has_scan and len(page.words) < 5 for page in pages)
    if num_scans * 2 > len(pages):
        raise UnreadableFileError(
            f"scanned: {num_scans} of {len(pages)} pages are images without text; recognise the text first, for "
            "instance with ocrmypdf"
        )
    if not any(page.words for page in pages):
        raise UnreadableFileError(f"without text on any of its {len(pages)} pages")
    if counts["unmapped"] > _MOST_UNMAPPED_SHARE * counts["characters"]:
        raise UnreadableFileError(
            f"in fonts that do not tell their letters ({counts['unmapped']} of {counts['characters']} characters); "
            "recognise the text anew, for instance with ocrmypdf --force-ocr"
        )


def _read_page(document: Any, index: int, counts: Counter[str]) -> Page:
    page = document[index]
    try:
        turn = _Turn(page)
        text = page.get_textpage()
        try:
            words = list(_Words(text, turn, counts).read())
        finally:
            text.close()
        boxes = list(_drawings(page, turn))
    finally:
        page.close()
    area = _BACKGROUND_SHARE * turn.width * turn.height
    drawings = [box for box in boxes if box.width * box.height < area]
    has_scan = any(not box.is_path and box.width * box.height >= area for box in boxes)
    return Page(index + 1, turn.width, turn.height, words, drawings, has_scan)


class _Turn:
    """Turns the file's coordinates, y upwards and perhaps lying on the side, into the reader's."""

    def __init__(self, page: Any) -> None:
        self._left, self._bottom, self._right, self._top = page.get_bbox()
        self.quarters = page.get_rotation() // 90
        self.width, self.height = page.get_size()

    def point(self, x: float, y: float) -> tuple[float, float]:
        left, bottom, right, top = x - self._left, y - self._bottom, self._right - x, self._top - y
        return ((left, top), (bottom, left), (right, bottom), (top, right))[self.quarters]

    def box(self, left: float, bottom: float, right: float, top: float) -> tuple[float, float, float, float]:
        x, y = self.point(left, bottom)
        other_x, other_y = self.point(right, top)
        return min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y)


def _drawings(page: Any, turn: _Turn) -> Iterator[Drawing]:
    import pypdfium2

    kinds = pypdfium2.raw
    wanted = [kinds.FPDF_PAGEOBJ_PATH, kinds.FPDF_PAGEOBJ_IMAGE, kinds.FPDF_PAGEOBJ_SHADING, kinds.FPDF_PAGEOBJ_FORM]
    for item in page.get_objects(filter=wanted, max_depth=1):
        try:
            box = turn.box(*item.get_bounds())
        except pypdfium2.PdfiumError:
            continue  # an object without extent
        yield Drawing(*box, is_path=item.type == kinds.FPDF_PAGEOBJ_PATH)


class _Style(NamedTuple):
    """What is the same for all characters of one text object."""

    baseline: float
    size: float
    is_bold: bool
    is_typewriter: bool
    is_upright: bool


class _Words:
    """Takes a page's words and lines as pdfium separates them."""

    def __init__(self, text: Any, turn: _Turn, counts: Counter[str]) -> None:
        import pypdfium2

        self._raw, self._text, self._turn, self._counts = pypdfium2.raw, text, turn, counts
        self._styles: dict[int, _Style] = {}
        self._row = 0

    def read(self) -> Iterator[Word]:
        """Yield the words in pdfium's order; text that does not stand upright on the page is left out.

        Where type or baseline change within a word, as before the mark of a note, its parts are yielded one by one.
        """
        letters: list[str] = []
        first = last = 0
        style: _Style | None = None
        for index in range(self._text.count_chars()):
            code = self._raw.FPDFText_GetUnicode(self._text.raw, index)
            letter = "-" if code in _HYPHENS else chr(code)
            if code < 0x20 and letter != "-" and not letter.isspace():
                continue
            is_space = letter.isspace() or (code == 0xAD and self._raw.FPDFText_IsGenerated(self._text.raw, index))
            here = None if is_space else self._style_of(index)
            is_left_out = here is None or not here.is_upright
            if letters and style and (is_left_out or _differ(style, here)):
                yield self._word(letters, first, last, style, ends_at_space=is_left_out)
                letters = []
            if letter == "\n" or (style and here and abs(here.baseline - style.baseline) > 0.5 * style.size):
                self._row += 1
            if is_left_out:
                continue
            self._count(code, index)
            if not letters:
                first, style = index, here
            letters.append(letter)
            last = index
        if letters and style:
            yield self._word(letters, first, last, style, ends_at_space=True)

    def _word(self, letters: list[str], first: int, last: int, style: _Style, *, ends_at_space: bool) -> Word:
        box = around([self._box(first), self._box(last)])
        place = (box.left, box.top, box.right, box.bottom)
        return Word(*place, "".join(letters), *style[:4], ends_at_space=ends_at_space, row=self._row)

    def _box(self, index: int) -> Box:
        loose = self._raw.FS_RECTF()
        self._raw.FPDFText_GetLooseCharBox(self._text.raw, index, ctypes.byref(loose))
        return Box(*self._turn.box(loose.left, loose.bottom, loose.right, loose.top))

    def _count(self, code: int, index: int) -> None:
        self._counts["characters"] += 1
        if code in _PRIVATE_USE or code == 0xFFFD or self._raw.FPDFText_HasUnicodeMapError(self._text.raw, index) == 1:
            self._counts["unmapped"] += 1

    def _style_of(self, index: int) -> _Style:
        item = self._raw.FPDFText_GetTextObject(self._text.raw, index)
        if not item:
            return self._read_style(index)
        address = ctypes.addressof(item.contents)
        if address not in self._styles:
            self._styles[address] = self._read_style(index)
        return self._styles[address]

    def _read_style(self, index: int) -> _Style:
        raw, handle = self._raw, self._text.raw
        matrix, x, y = raw.FS_MATRIX(), ctypes.c_double(), ctypes.c_double()
        raw.FPDFText_GetMatrix(handle, index, ctypes.byref(matrix))
        raw.FPDFText_GetCharOrigin(handle, index, ctypes.byref(x), ctypes.byref(y))
        size = abs(raw.FPDFText_GetFontSize(handle, index) * math.hypot(matrix.c, matrix.d)) or 1.0
        # Clockwise from the file's x axis; the page may be turned the other way round.
        angle = raw.FPDFText_GetCharAngle(handle, index)
        offset = (angle - self._turn.quarters * -math.pi / 2) % (2 * math.pi)
        name = ctypes.create_string_buffer(256)
        raw.FPDFText_GetFontInfo(handle, index, name, len(name), None)
        face = name.value.lower()
        # The weight is a guess from the thickness of stems: a name says more.
        is_bold = bool(_BOLD_NAME.search(face)) if face else raw.FPDFText_GetFontWeight(handle, index) >= 600
        is_upright = min(offset, 2 * math.pi - offset) < 0.1
        baseline = self._turn.point(x.value, y.value)[1]
        return _Style(baseline, size, is_bold, bool(_TYPEWRITER_NAME.search(face)), is_upright)


def _differ(one: _Style, other: _Style | None) -> bool:
    assert other is not None
    shift, growth = abs(one.baseline - other.baseline), abs(one.size - other.size)
    return shift > 0.1 * one.size or growth > 0.05 * one.size or one.is_bold != other.is_bold
