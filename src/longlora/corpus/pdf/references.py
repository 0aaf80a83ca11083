"""The list of references: where it begins, and where the text goes on behind it."""

import re
from collections.abc import Sequence

from longlora.corpus.pdf.paragraphs import Paragraph

_HEADING = re.compile(
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


def find_references(paragraphs: Sequence[Paragraph]) -> range:
    """Return the places of the last list of references, its heading included; an empty range if there is none.

    It begins with a heading such as `References`, most of what follows looks like entries (a number, or a year), and it
    ends with the document or where an appendix begins.
    """
    for begin in range(len(paragraphs) - 1, -1, -1):
        paragraph = paragraphs[begin]
        if paragraph.kind != "body" or not _HEADING.fullmatch(paragraph.text):
            continue
        end = begin + 1
        while end < len(paragraphs) and not _is_appendix(paragraphs[end], paragraph):
            end += 1
        body = [other.text for other in paragraphs[begin + 1 : end] if other.kind == "body"]
        entries = sum(bool(_ENTRY.match(text)) for text in body)
        if entries >= min(_FEWEST_ENTRIES, max(1, len(body))) and entries >= _ENTRY_SHARE * len(body):
            return range(begin, end)
    return range(0)


def _is_appendix(paragraph: Paragraph, heading: Paragraph) -> bool:
    """A heading as large as that of the references, or in bold like it, that is none of an entry."""
    if paragraph.kind != "body" or len(paragraph.text) > _LONGEST_HEADING or len(paragraph.lines) > 2:
        return False
    line, other = paragraph.lines[0], heading.lines[0]
    looks_alike = line.is_bold == other.is_bold and abs(line.size - other.size) < 0.06 * other.size
    return looks_alike and bool(_APPENDIX.match(paragraph.text))
