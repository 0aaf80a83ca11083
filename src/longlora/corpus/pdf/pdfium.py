"""Read a PDF's pages with pdfium, as words and drawings, and check that there is text to read."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from longlora.corpus.pdf.words import Box, View, Word, around, read_words
from longlora.errors import DataError

_BACKGROUND_SHARE = 0.8  # of the page's area: such a large drawing is its background or a scan
_MOST_UNMAPPED_SHARE = 0.2
_FEWEST_WORDS_OF_TEXT = 5  # on a page with a scan
_FEWEST_PAGES_READ = 0.25  # share of pages with text among scans: a cover page is not the paper
_READABLE_SHARE = 0.85  # of words with at least three Latin letters: those with a vowel
_VOWEL = re.compile(r"[aeiouy\u00e0-\u00ff]", re.IGNORECASE)
_LATIN = re.compile(r"[A-Za-z\u00c0-\u00ff]{3,}")
# Far above any document written by people, and a few GiB of memory.
_MOST_PAGES = 20_000
_MOST_WORDS = 5_000_000
# Limits for the search for columns and figures, whose time grows cubically: maps and damaged pages may exceed them.
_LARGEST_PAGE = 14_400  # points, the limit of PDF
_MOST_WORDS_OF_A_PAGE = 10_000
_MOST_ROWS_OF_A_PAGE = 500
_ERRORS = {
    3: "damaged: pdfium finds no document in it",
    4: "encrypted, and needs a password: save a copy without one",
    5: "encrypted with a method that pdfium does not support",
}


@dataclass(frozen=True, slots=True)
class Drawing(Box):
    """A path, an image or a group of them."""

    is_path: bool


@dataclass(slots=True)
class Page:
    """Words in pdfium's order, and drawings."""

    number: int
    height: float
    words: list[Word]
    drawings: list[Drawing] = field(default_factory=list)
    has_scan: bool = False  # an image covers the page
    turned: list[Word] = field(default_factory=list)  # words that are not upright: stamps and marks in margins

    @property
    def is_scattered(self) -> bool:
        """Whether there are too many words or rows, or too far apart, to look for columns."""
        if not self.words:
            return False
        box = around(self.words)
        num_rows = 1 + sum(one.row != other.row for one, other in pairwise(self.words))
        return (
            max(box.width, box.height) > _LARGEST_PAGE
            or len(self.words) > _MOST_WORDS_OF_A_PAGE
            or num_rows > _MOST_ROWS_OF_A_PAGE
        )


def read_pages(path: Path) -> tuple[list[Page], dict[str, str]]:
    """Read all pages of a PDF, and its metadata.

    Raises:
        DataError: empty, truncated, damaged, encrypted, scanned, or in fonts without a Unicode mapping.
    """
    import pypdfium2

    _check_whole(path)
    counts: Counter[str] = Counter()
    try:
        with pypdfium2.PdfDocument(path) as document:
            pages = _read_all(document, counts)
            metadata = document.get_metadata_dict(skip_empty=True)
    except pypdfium2.PdfiumError as error:
        raise DataError(_ERRORS.get(error.err_code or 0, f"damaged: {error}")) from error
    _check_readable(pages, counts)
    return pages, metadata


def _read_all(document: Any, counts: Counter[str]) -> list[Page]:
    if len(document) > _MOST_PAGES:
        raise DataError(f"too large: it has more than {_MOST_PAGES:,} pages; split it")
    pages: list[Page] = []
    left = _MOST_WORDS
    for index in range(len(document)):
        pages.append(_read_page(document, index, counts))
        left -= len(pages[-1].words) + len(pages[-1].drawings)
        if left < 0:
            raise DataError(f"too large: it has more than {_MOST_WORDS:,} words and drawings; split it")
    return pages


def _check_whole(path: Path) -> None:
    """Check that a file begins and ends like a PDF; there may be padding after the end, but no PDF objects."""
    content = path.read_bytes()
    if b"%PDF-" not in content[:1024]:
        raise DataError("not a PDF: it does not begin with %PDF")
    end = content.rfind(b"%%EOF")
    if end < 0 or re.search(rb"\d+ \d+ obj\b", content[end:]):
        raise DataError("truncated: the end-of-file marker of a PDF is missing; download it again")


def _check_readable(pages: list[Page], counts: Counter[str]) -> None:
    without_text = [page for page in pages if len(page.words) < _FEWEST_WORDS_OF_TEXT]
    num_scans = sum(page.has_scan for page in without_text)
    num_read = len(pages) - len(without_text)
    if num_scans and num_read < _FEWEST_PAGES_READ * (num_read + num_scans):
        raise DataError(
            f"scanned: {num_scans} of {len(pages)} pages are images without text; run OCR first, for instance with "
            "ocrmypdf"
        )
    if not any(page.words for page in pages):
        raise DataError(f"without text on any of its {len(pages)} pages")
    # pdfium doubts fonts without letter names, but in those of old TeX the codes are right.
    num_unmapped = counts["no letter"] + (0 if _reads_well(pages) else counts["doubted"])
    if num_unmapped > _MOST_UNMAPPED_SHARE * counts["characters"]:
        raise DataError(
            f"in fonts without a valid Unicode mapping ({num_unmapped} of {counts['characters']} characters); "
            "run OCR first, for instance with ocrmypdf --force-ocr"
        )


def _reads_well(pages: list[Page]) -> bool:
    """Return whether nearly all longer words have a vowel; scrambled letters or glyph numbers have few."""
    words = [word for page in pages for it in page.words for word in _LATIN.findall(it.text)]
    return sum(bool(_VOWEL.search(word)) for word in words) > _READABLE_SHARE * len(words)


def _read_page(document: Any, index: int, counts: Counter[str]) -> Page:
    page = document[index]
    try:
        words, found = read_words(page)
        turns: Counter[int] = Counter()
        for word in words:
            turns[word.turn] += len(word.text)
        if words and (turn := turns.most_common(1)[0][0]) > 0:
            page.set_rotation((page.get_rotation() + 90 * turn) % 360)  # the page's text is sideways
            words, found = read_words(page)
        view = View(page)
        boxes = list(_drawings(page, view))
    finally:
        page.close()
    counts.update(found)
    area = _BACKGROUND_SHARE * view.width * view.height
    drawings = [box for box in boxes if box.width * box.height < area]
    has_scan = any(not box.is_path and box.width * box.height >= area for box in boxes)
    upright, turned = ([word for word in words if (word.turn == 0) is is_upright] for is_upright in (True, False))
    return Page(index + 1, view.height, upright, drawings, has_scan, turned)


def _drawings(page: Any, view: View) -> Iterator[Drawing]:
    import pypdfium2

    kinds = pypdfium2.raw
    wanted = [kinds.FPDF_PAGEOBJ_PATH, kinds.FPDF_PAGEOBJ_IMAGE, kinds.FPDF_PAGEOBJ_SHADING, kinds.FPDF_PAGEOBJ_FORM]
    for item in page.get_objects(filter=wanted, max_depth=1):
        try:
            box = view.box(*item.get_bounds())
        except pypdfium2.PdfiumError:
            continue  # an object without extent
        seen = max(box.left, 0.0), max(box.top, 0.0), min(box.right, view.width), min(box.bottom, view.height)
        if seen[0] <= seen[2] and seen[1] <= seen[3]:
            yield Drawing(*seen, is_path=item.type == kinds.FPDF_PAGEOBJ_PATH)
