"""Extract one record, a text with its metadata, from a file of any supported kind."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from longlora import __version__
from longlora.corpus.markup import MarkedText, read_epub, read_html, read_markdown, read_plain
from longlora.errors import ConfigError, DataError
from longlora.support.choices import DocumentKind, DocumentKindOrAuto, PdfEngine, References
from longlora.support.digests import sha256_of

if TYPE_CHECKING:
    from longlora.corpus.pdf.document import PdfText

logger = logging.getLogger("longlora")

SUFFIXES = {
    **{".pdf": "pdf", ".epub": "epub"},
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".md", ".markdown"), "markdown"),
    **dict.fromkeys((".txt", ".text"), "text"),
}
_MOST_KINDS_NAMED = 8
_PACKAGES = ("pypdfium2", "bs4", "lxml", "datasketch", "trafilatura")
_MARKUP = {"epub": read_epub, "html": read_html, "markdown": read_markdown, "text": read_plain}

_ABSTRACT = re.compile(r"^[^\w\n]*a ?b ?s ?t ?r ?a ?c ?t\b|\\begin\{abstract\}", re.IGNORECASE | re.MULTILINE)
_ABSTRACT_WITHIN = 10_000  # characters
_REFERENCES = re.compile(
    r"^[^\w\n]*(?:\d+\.?\s+)?(?:references|bibliography|literature cited|works cited)[^\w\n]*$|\\bibliography\{|"
    r"\\begin\{thebibliography\}",
    re.IGNORECASE | re.MULTILINE,
)
_CITATION = re.compile(r"\[\d+(?:[,–-] ?\d+)*\]|\bet al\b|\([A-Z][^()\d]{1,60},? (?:19|20)\d\d[a-z]?\)|\\cite")
_FEWEST_CITATIONS = 5
_WORDS_BETWEEN_CITATIONS = 500
_LONGEST_PAPER = 40_000  # words, without an abstract
_SIGNS = 0.25  # share of words; a higher one suggests a drawing
_FROM_RIGHT_TO_LEFT = 0.05  # share of letters


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """Settings that determine the text extracted from a file."""

    engine: PdfEngine = "pdfium"
    references: References = "drop"
    kind: DocumentKindOrAuto = "auto"

    @property
    def uses_docling(self) -> bool:
        """Whether docling reads PDFs."""
        return self.engine == "docling" or (self.engine == "auto" and find_spec("docling") is not None)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A text and its origin: one line of the corpus."""

    text: str
    title: str
    file: str
    kind: str  # of the file
    document_kind: DocumentKind  # determines which questions are asked about it
    pages: int  # of a PDF; parts of an e-book, else 1
    sha256: str  # of the file
    tool: str  # program, library and version that extracted the text
    notes: list[str]  # what a reader should know: pages without text, references left out
    near_duplicate_of: str | None = None  # an earlier file with nearly the same text, if near duplicates are marked


def find_files(sources: list[str]) -> list[Path]:
    """List the files of all sources, in their order; a folder gives every readable file below it, sorted by path.

    Raises:
        DataError: a source does not exist or is of an unsupported kind, or a folder contains no readable file.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            found = list(_readable_files(path))
            if not found:
                raise DataError(f"folder {source} must contain a readable file ({', '.join(SUFFIXES)}), found none")
            files += found
        elif not path.exists():
            raise DataError(f"{source} does not exist; name files or folders")
        elif not path.is_file():
            raise DataError(f"{source} is a pipe or a device, which cannot be read twice; save it as a file first")
        elif path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{source} is not a supported kind of file; supported are: {', '.join(SUFFIXES)}")
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def _readable_files(folder: Path) -> Iterator[Path]:
    others: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or not path.is_file():
            continue
        if path.suffix.lower() in SUFFIXES:
            yield path
        else:
            others[path.suffix.lower() or "without a suffix"] += 1
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(_MOST_KINDS_NAMED))
        logger.warning("%s has %d files of unsupported kinds (%s)", folder, others.total(), kinds)


def check_installed() -> None:
    """Check that the libraries of the extra `corpus` are installed.

    Raises:
        ConfigError: one is missing.
    """
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"this needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'longlora[corpus]'"
        )


def extract(path: Path, settings: ExtractSettings) -> Record:
    """Extract the record of a file.

    Raises:
        DataError: no text can be extracted; the message gives the reason.
    """
    try:
        digest = sha256_of(path)
        with path.open("rb") as file:
            begin = file.read(1024)
        if not begin:
            raise DataError("empty: it has no bytes")
        # A server may deliver a PDF under the URL of a page.
        kind = "pdf" if begin.startswith(b"%PDF-") else SUFFIXES[path.suffix.lower()]
        marked, tool = _read_pdf(path, settings) if kind == "pdf" else (_MARKUP[kind](path), "")
    except OSError as error:
        raise DataError(f"unreadable ({error.strerror or error})") from error
    if not marked.text.strip():
        raise DataError("; ".join(["without text that training could use", *marked.notes]))
    document_kind = settings.kind
    if document_kind == "auto":
        document_kind = detect_kind(marked.text, has_references=marked.has_references)
    return Record(
        text=marked.text,
        title=marked.title or path.stem,
        file=str(path),
        kind=kind,
        document_kind=document_kind,
        pages=marked.num_parts,
        sha256=digest,
        tool=f"longlora {__version__}{tool}",
        notes=list(marked.notes),
    )


def detect_kind(text: str, *, has_references: bool = False) -> DocumentKind:
    """Return "paper" if a text has an abstract and references, or is short with references or citations."""
    num_words = len(text.split())
    is_short = num_words < _LONGEST_PAPER
    cites = len(_CITATION.findall(text)) > max(_FEWEST_CITATIONS, num_words / _WORDS_BETWEEN_CITATIONS)
    lists = has_references or _REFERENCES.search(text, len(text) // 2) is not None
    is_paper = (lists and _ABSTRACT.search(text[:_ABSTRACT_WITHIN])) or (is_short and (lists or cites))
    return "paper" if is_paper else "book"


def _read_pdf(path: Path, settings: ExtractSettings) -> tuple[MarkedText, str]:
    if settings.uses_docling:
        return read_by_docling(path), f", docling {version('docling')}"
    from longlora.corpus.pdf.document import read_pdf

    read = read_pdf(path, references=settings.references)
    marked = MarkedText(
        text=read.text,
        title=read.title,
        num_parts=read.num_pages,
        notes=tuple(pdf_notes(read)),
        has_references="references" in read.left_out,
    )
    return marked, f", pypdfium2 {version('pypdfium2')}"


def pdf_notes(read: "PdfText") -> list[str]:
    """Return notes for readers of a PDF's text: what is missing, and what may be wrong."""
    notes = []
    if read.pages_without_text:
        numbers = _page_numbers(read.pages_without_text)
        notes.append(f"{len(read.pages_without_text)} of {read.num_pages} pages have no text: {numbers}")
    if read.pages_as_they_are:
        numbers = _page_numbers(read.pages_as_they_are)
        notes.append(f"pages with pdfium's own lines, as rebuilding them would split words: {numbers}")
    if (share := _share_from_right_to_left(read.text)) > _FROM_RIGHT_TO_LEFT:
        notes.append(f"{share:.0%} of the letters are written from right to left: words may be split or out of order")
    words = read.text.split()
    signs = sum(not any(map(str.isalnum, word)) for word in words)
    if signs > _SIGNS * len(words):
        notes.append(f"{signs:,} of {len(words):,} words have no letter or digit: maybe a drawing made of characters")
    if read.left_out:
        kinds = ", ".join(f"{len(words)} words of {kind}" for kind, words in read.left_out.items())
        notes.append(f"left out: {kinds}")
    return notes


def _share_from_right_to_left(text: str) -> float:
    letters = {letter: count for letter, count in Counter(text).items() if letter.isalpha()}
    turned = sum(count for letter, count in letters.items() if unicodedata.bidirectional(letter) in ("R", "AL"))
    return turned / max(1, sum(letters.values()))


def _page_numbers(numbers: Sequence[int]) -> str:
    """Format ascending numbers, with runs as `3-7`."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda it: it[1] - it[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def read_by_docling(path: Path) -> MarkedText:
    """Convert a PDF to Markdown with docling, which finds headings, tables and formulas with its own models.

    longlora's tests do not run docling, as they do not install it.

    Raises:
        DataError: docling cannot convert it.
    """
    from docling.document_converter import DocumentConverter

    result = DocumentConverter().convert(path, raises_on_error=False)
    if result.document is None or result.errors:
        raise DataError(f"docling: {'; '.join(str(error) for error in result.errors) or 'no document'}")
    text = result.document.export_to_markdown()
    return MarkedText(text=text, title=result.document.name or "", num_parts=len(result.document.pages))
