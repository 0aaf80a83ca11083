"""What stands on a page: words with their places, rulings and drawings, as pdfium tells them."""

import ctypes
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longlora.corpus.unreadable import UnreadableFileError

# The end of every whole PDF. What an unfinished download lacks stands in its last bytes.
_END_MARK = b"%%EOF"
_TAIL_BYTES = 1 << 16

# pdfium tells a hyphen at a line's end as one of these.
_HYPHENS = {0x02: "-", 0xFFFE: "-"}
_PRIVATE_USE = range(0xE000, 0xF900)
# A drawing as large as this is the page's background, or a scan of it.
_BACKGROUND_SHARE = 0.8
_MOST_UNMAPPED_SHARE = 0.2
_TYPEWRITER_NAME = re.compile(rb"mono|courier|consol|typewriter|cmtt|lmtt|sftt|menlo|source ?code")
_BOLD_NAME = re.compile(rb"bold|black|heavy|cmbx")
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


@dataclass(frozen=True, slots=True)
class Word(Box):
    """A run of characters on one baseline, in one size, without a space inside."""

    text: str
    baseline: float
    size: float
    is_bold: bool
    is_typewriter: bool
    """In a face whose letters are all of one width: code, most often."""
    ends_at_space: bool
    """A space follows, rather than a change of font or a jump."""


@dataclass(frozen=True, slots=True)
class Drawing(Box):
    """A path, an image or a group of them."""

    is_path: bool


@dataclass(slots=True)
class Page:
    """Words in the order of the file, and drawings."""

    number: int
    width: float
    height: float
    words: list[Word]
    drawings: list[Drawing] = field(default_factory=list)
    has_scan: bool = False
    """An image covers the page."""


@dataclass(frozen=True, slots=True)
class PrintedPages:
    """The pages of a file and what its metadata says."""

    pages: list[Page]
    metadata: dict[str, str]


def read_pages(path: Path) -> PrintedPages:
    """Read every page of a PDF.

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
        pages = [_read_page(document, index, counts) for index in range(len(document))]
        metadata = document.get_metadata_dict(skip_empty=True)
    except pypdfium2.PdfiumError as error:
        raise UnreadableFileError(f"damaged: {error}") from error
    finally:
        document.close()
    _check_readable(pages, counts)
    return PrintedPages(pages, metadata)


def _check_whole(path: Path) -> None:
    size = path.stat().st_size
    if size == 0:
        raise UnreadableFileError("empty: it holds no bytes")
    with path.open("rb") as file:
        head = file.read(1024)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    if b"%PDF-" not in head:
        raise UnreadableFileError("no PDF: it does not begin with %PDF")
    if _END_MARK not in tail:
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
        if self.quarters == 0:
            return x - self._left, self._top - y
        if self.quarters == 1:
            return y - self._bottom, x - self._left
        if self.quarters == 2:
            return self._right - x, y - self._bottom
        return self._top - y, self._right - x

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


@dataclass(slots=True)
class _Style:
    """What is the same for all characters of one text object."""

    size: float
    is_bold: bool
    is_typewriter: bool
    is_upright: bool


class _Words:
    """Puts a page's characters together to words."""

    def __init__(self, text: Any, turn: _Turn, counts: Counter[str]) -> None:
        import pypdfium2

        self._raw = pypdfium2.raw
        self._text = text
        self._turn = turn
        self._counts = counts
        self._styles: dict[int, _Style] = {}
        self._characters: list[str] = []
        self._box = [0.0, 0.0, 0.0, 0.0]
        self._baseline = 0.0
        self._style = _Style(0.0, False, False, True)

    def read(self) -> Iterator[Word]:
        """Yield the words in the order of the file; text that does not stand upright on the page is left out."""
        raw, handle = self._raw, self._text.raw
        loose, x, y = raw.FS_RECTF(), ctypes.c_double(), ctypes.c_double()
        for index in range(self._text.count_chars()):
            code = raw.FPDFText_GetUnicode(handle, index)
            letter = _HYPHENS.get(code) or chr(code)
            if letter.isspace() or (code == 0xAD and raw.FPDFText_IsGenerated(handle, index)):
                yield from self._finish(at_space=True)
                continue
            if code < 0x20 and code not in _HYPHENS:
                continue
            style = self._style_of(index)
            if not style.is_upright:
                yield from self._finish(at_space=True)
                continue
            raw.FPDFText_GetLooseCharBox(handle, index, ctypes.byref(loose))
            raw.FPDFText_GetCharOrigin(handle, index, ctypes.byref(x), ctypes.byref(y))
            self._count(code, index)
            box = self._turn.box(loose.left, loose.bottom, loose.right, loose.top)
            baseline = self._turn.point(x.value, y.value)[1]
            if self._characters and self._is_apart(box, baseline, style):
                yield from self._finish(at_space=False)
            self._add(letter, box, baseline, style)
        yield from self._finish(at_space=True)

    def _count(self, code: int, index: int) -> None:
        self._counts["characters"] += 1
        if code in _PRIVATE_USE or code == 0xFFFD or self._raw.FPDFText_HasUnicodeMapError(self._text.raw, index) == 1:
            self._counts["unmapped"] += 1

    def _is_apart(self, box: tuple[float, float, float, float], baseline: float, style: _Style) -> bool:
        size = self._style.size
        gap = box[0] - self._box[2]
        changes = abs(style.size - size) > 0.05 * size or style.is_bold != self._style.is_bold
        return changes or abs(baseline - self._baseline) > 0.1 * size or gap > 0.15 * size or gap < -0.5 * size

    def _add(self, letter: str, box: tuple[float, float, float, float], baseline: float, style: _Style) -> None:
        if not self._characters:
            self._box, self._baseline, self._style = list(box), baseline, style
        else:
            mine = self._box
            self._box = [min(mine[0], box[0]), min(mine[1], box[1]), max(mine[2], box[2]), max(mine[3], box[3])]
        self._characters.append(letter)

    def _finish(self, *, at_space: bool) -> Iterator[Word]:
        if self._characters:
            text, self._characters = "".join(self._characters), []
            left, top, right, bottom = self._box
            style = self._style
            yield Word(
                left, top, right, bottom, text, self._baseline, style.size, style.is_bold, style.is_typewriter, at_space
            )

    def _style_of(self, index: int) -> _Style:
        handle = self._text.raw
        item = self._raw.FPDFText_GetTextObject(handle, index)
        address = ctypes.addressof(item.contents) if item else 0
        style = self._styles.get(address)
        if style is None:
            style = self._styles[address] = self._read_style(index)
        return style

    def _read_style(self, index: int) -> _Style:
        raw, handle = self._raw, self._text.raw
        matrix = raw.FS_MATRIX()
        raw.FPDFText_GetMatrix(handle, index, ctypes.byref(matrix))
        size = raw.FPDFText_GetFontSize(handle, index) * math.hypot(matrix.c, matrix.d)
        # Clockwise from the file's x axis; the page may be turned the other way round.
        angle = raw.FPDFText_GetCharAngle(handle, index)
        offset = (angle - self._turn.quarters * -math.pi / 2) % (2 * math.pi)
        name = ctypes.create_string_buffer(256)
        raw.FPDFText_GetFontInfo(handle, index, name, len(name), None)
        is_bold = raw.FPDFText_GetFontWeight(handle, index) >= 600 or bool(_BOLD_NAME.search(name.value.lower()))
        is_typewriter = bool(_TYPEWRITER_NAME.search(name.value.lower()))
        return _Style(abs(size) or 1.0, is_bold, is_typewriter, min(offset, 2 * math.pi - offset) < 0.1)
