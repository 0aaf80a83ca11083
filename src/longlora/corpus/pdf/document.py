"""Extract the text of a PDF."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from longlora.corpus.pdf.asides import Block, split_column
from longlora.corpus.pdf.columns import find_gutters, reading_order
from longlora.corpus.pdf.drawings import without_labels
from longlora.corpus.pdf.lines import Line, make_lines, parts_words, pdfium_lines, typical_size
from longlora.corpus.pdf.margins import without_margins
from longlora.corpus.pdf.paragraphs import Paragraph, ends_sentence, make_paragraphs
from longlora.corpus.pdf.pdfium import Page, read_pages
from longlora.support.choices import References

# Titles that programs write if the author gave none: names of files, templates or the program.
_NO_TITLE = re.compile(
    r"untitled|microsoft (?:word|powerpoint)|powerpoint presentation|template|\.(tex|dvi|e?ps|docx?|pdf|indd|html?)\b|"
    r"^\s*$|^(?:https?:|arxiv:)|^\S*[_\d]\S*$|^(?:layout|slide|document|title|paper|manuscript|article|main)\b\s*\d*$",
    re.IGNORECASE,
)
_LONGEST_TITLE = 300  # characters
_TITLE_SIZE = 1.15  # times the body's type size

_REFERENCES = re.compile(
    r"(?:\d{1,2}\.?\s+|[IVX]+\.\s+)?(?:references(?: cited)?|bibliography|literature cited|works cited)[.:]?",
    re.IGNORECASE,
)
_APPENDIX = re.compile(
    r"(?i:appendix|appendices|supplement\w*|supporting information|acknowledge?ments?)\b|[A-H](?:\.\d+)?\.?\s+[A-Z]"
)
_ENTRY = re.compile(r"\[\d+\]|\d{1,3}\.\s|.*\b(?:1[89]|20)\d\d[a-z]?\b")
_FEWEST_ENTRIES = 3
_ENTRY_SHARE = 0.5
_LONGEST_HEADING = 60  # characters


LeftOut = dict[str, list[tuple[int, str]]]
"""What is left out on purpose, by kind: page numbers and words."""

_LEFT_OUT = {"table": "tables", "label": "labels of figures"}


@dataclass(frozen=True, kw_only=True)
class PdfText:
    """A document's text, and how it was extracted."""

    text: str
    title: str
    num_pages: int
    pages_without_text: list[int]
    pages_as_they_are: list[int]  # pages with pdfium's own lines, as rebuilding them would have split words
    paragraphs: list[Paragraph]  # all, including the references
    left_out: LeftOut


def read_pdf(path: Path, *, references: References = "drop") -> PdfText:
    """Extract a PDF's text in reading order, with an empty line between paragraphs.

    Raises:
        DataError: no text can be extracted; the message gives the reason.
    """
    pages, metadata = read_pages(path)
    paragraphs, left_out, as_they_are = read_paragraphs(pages)
    kept = paragraphs
    if references == "drop":
        listed = find_references(paragraphs)
        # A footnote of the text may be below the list, if both are on the same page.
        kept = [it for index, it in enumerate(paragraphs) if index not in listed or it.kind != "body"]
        dropped = [line for index in listed if paragraphs[index].kind == "body" for line in paragraphs[index].lines]
        left_out["references"] = _words_of(dropped)
    return PdfText(
        text="\n\n".join(it.text for it in kept),
        title=_title(metadata.get("Title", ""), paragraphs),
        num_pages=len(pages),
        pages_without_text=[page.number for page in pages if not page.words],
        pages_as_they_are=as_they_are,
        paragraphs=paragraphs,
        left_out={kind: words for kind, words in left_out.items() if words},
    )


def read_paragraphs(pages: Sequence[Page]) -> tuple[list[Paragraph], LeftOut, list[int]]:
    """Return the paragraphs of pages in reading order, what was left out, and the pages with pdfium's own lines."""
    left_out: LeftOut = defaultdict(list)
    cleaned = []
    for page in pages:
        page, labels = without_labels(page)
        left_out["labels of figures"] += [(page.number, word.text) for word in labels]
        left_out["turned text"] += [(page.number, word.text) for word in page.turned]
        cleaned.append(page)
    pages, margins = without_margins(cleaned)
    left_out["heads and page numbers"] += margins
    body_size = typical_size(word for page in pages for word in page.words)
    gutters = find_gutters(pages)
    blocks: list[Block] = []
    as_they_are = []
    for page in pages:
        parts = [] if page.is_scattered else reading_order(page.words, gutters)
        columns = [make_lines(words, page=page.number) for words in parts]
        if page.is_scattered or parts_words([line for lines in columns for line in lines], page.words):
            as_they_are.append(page.number)
            columns = [pdfium_lines(page.words, page=page.number)]
        for lines in columns:
            notes = [block for block in blocks if block.kind == "footnote"]
            is_open = bool(notes) and not ends_sentence(notes[-1].lines[-1].text)
            blocks += split_column(lines, body_size=body_size, page_height=page.height, note_is_open=is_open)
    for block in blocks:
        if block.kind in _LEFT_OUT:
            left_out[_LEFT_OUT[block.kind]] += _words_of(block.lines)
    return make_paragraphs(blocks), left_out, as_they_are


def _words_of(lines: Iterable[Line]) -> list[tuple[int, str]]:
    return [(line.page, text) for line in lines for text in line.text.split()]


def find_references(paragraphs: Sequence[Paragraph]) -> range:
    """Return the paragraph indices of the last list of references, including its heading; empty if there is none.

    The list begins with a heading such as `References`; most of what follows looks like entries (a number or a year);
    and it ends with the document or at an appendix.
    """
    for begin in range(len(paragraphs) - 1, -1, -1):
        heading = paragraphs[begin]
        if heading.kind != "body" or not _REFERENCES.fullmatch(heading.text):
            continue
        after = range(begin + 1, len(paragraphs))
        end = next((index for index in after if _is_appendix(paragraphs[index], heading)), len(paragraphs))
        body = [other.text for other in paragraphs[begin + 1 : end] if other.kind == "body"]
        entries = sum(bool(_ENTRY.match(text)) for text in body)
        if entries >= min(_FEWEST_ENTRIES, max(1, len(body))) and entries >= _ENTRY_SHARE * len(body):
            return range(begin, end)
    return range(0)


def _is_appendix(paragraph: Paragraph, heading: Paragraph) -> bool:
    """Return whether a paragraph is the heading of an appendix, in the same type as the heading of the references."""
    if paragraph.kind != "body" or len(paragraph.text) > _LONGEST_HEADING or len(paragraph.lines) > 2:
        return False
    line, other = paragraph.lines[0], heading.lines[0]
    looks_alike = line.is_bold == other.is_bold and abs(line.size - other.size) < 0.06 * other.size
    return looks_alike and bool(_APPENDIX.match(paragraph.text))


def _title(metadata: str, paragraphs: Sequence[Paragraph]) -> str:
    """Return the title from the metadata if it looks like one, else the largest line of page 1 if it stands out."""
    # Many symbols mean that letters are coded as the glyph numbers of a font.
    num_symbols = sum(unicodedata.category(character).startswith("S") for character in metadata)
    if not _NO_TITLE.search(metadata) and 10 * num_symbols < len(metadata):
        return " ".join(metadata.split())[:_LONGEST_TITLE]
    first = [paragraph for paragraph in paragraphs if paragraph.lines[0].page == 1 and paragraph.kind == "body"]
    largest = max(first, key=lambda paragraph: paragraph.lines[0].size, default=None)
    usual = typical_size(word for paragraph in paragraphs for line in paragraph.lines for word in line.words)
    return largest.text[:_LONGEST_TITLE] if largest and largest.lines[0].size >= _TITLE_SIZE * usual else ""
