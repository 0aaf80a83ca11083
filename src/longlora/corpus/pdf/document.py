"""From a PDF to its text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longlora.corpus.pdf.asides import Block, split_column
from longlora.corpus.pdf.columns import find_gutters, reading_order
from longlora.corpus.pdf.drawings import without_drawn_words
from longlora.corpus.pdf.lines import make_lines, typical_size
from longlora.corpus.pdf.margins import without_margins
from longlora.corpus.pdf.page import Page, read_pages
from longlora.corpus.pdf.paragraphs import Paragraph, ends_sentence, make_paragraphs
from longlora.corpus.pdf.references import find_references

References = Literal["keep", "drop"]

# What programs write into a file's title when its author did not.
_NO_TITLE = re.compile(r"untitled|microsoft word|\.(tex|dvi|docx?|pdf|indd|html?)\b|^\s*$|^https?:", re.IGNORECASE)
_LONGEST_TITLE = 300  # characters
_TITLE_SIZE = 1.15  # of the body's


@dataclass(frozen=True, kw_only=True)
class PdfText:
    """A document's text, and what was done to it."""

    text: str
    title: str
    num_pages: int
    pages_without_text: int
    reference_words_dropped: int


def read_pdf(path: Path, *, references: References = "drop") -> PdfText:
    """Read a PDF's text in reading order; paragraphs stand apart by an empty line.

    Raises:
        UnreadableFileError: it has no text to give, for the reason said.
    """
    printed = read_pages(path)
    paragraphs = read_paragraphs(printed.pages)
    title = _title(printed.metadata.get("Title", ""), paragraphs)
    listed = find_references(paragraphs) if references == "drop" else range(0)
    # A footnote of the text may stand below the list that the page goes on with.
    dropped = [paragraphs[index] for index in listed if paragraphs[index].kind == "body"]
    kept = [paragraph.text for paragraph in paragraphs if not any(paragraph is other for other in dropped)]
    return PdfText(
        text="\n\n".join(kept),
        title=title,
        num_pages=len(printed.pages),
        pages_without_text=sum(not page.words for page in printed.pages),
        reference_words_dropped=sum(len(paragraph.text.split()) for paragraph in dropped),
    )


def read_paragraphs(pages: Sequence[Page]) -> list[Paragraph]:
    """Return the paragraphs of pages in reading order."""
    pages = without_margins([without_drawn_words(page) for page in pages])
    body_size = typical_size(word for page in pages for word in page.words)
    gutters = find_gutters(pages)
    blocks: list[Block] = []
    for page in pages:
        for column in reading_order(page.words, gutters):
            lines = make_lines(column.words, page=page.number, column=column.box)
            notes = [block for block in blocks if block.kind == "footnote"]
            is_open = bool(notes) and not ends_sentence(notes[-1].lines[-1].text)
            blocks += split_column(lines, body_size=body_size, page_height=page.height, note_is_open=is_open)
    return make_paragraphs(blocks)


def _title(metadata: str, paragraphs: Sequence[Paragraph]) -> str:
    """Believe the metadata if they name a title, else the largest line of the first page if it stands out."""
    if not _NO_TITLE.search(metadata):
        return " ".join(metadata.split())[:_LONGEST_TITLE]
    first = [paragraph for paragraph in paragraphs if paragraph.lines[0].page == 1 and paragraph.kind == "body"]
    if not first:
        return ""
    largest = max(first, key=lambda paragraph: paragraph.lines[0].size)
    usual = typical_size(word for paragraph in paragraphs for line in paragraph.lines for word in line.words)
    return largest.text[:_LONGEST_TITLE] if largest.lines[0].size >= _TITLE_SIZE * usual else ""
