"""Assemble lines into paragraphs, across columns and pages, and join their text."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from longlora.corpus.pdf.asides import Block, Kind, note_mark, usual_leading
from longlora.corpus.pdf.drawings import CAPTION
from longlora.corpus.pdf.lines import Line, joined, split

_WIDE_GAP = 1.3  # times the usual line spacing
_INDENT = 0.7  # times the type size
_ROOM = 0.6  # times the type size: space that must remain after a word for it to have had room
_OTHER_SIZE = 0.08
_SAME_EDGE = 2.0  # points
_MOST_LINES_OF_A_FOOT = 3
_NEIGHBOURS = 6  # lines above and below that determine the edges of a column at a line
_ITEM = re.compile(r"[•‣◦▪■●–*]\s|\(?(\d{1,3}|[a-z]|[ivx]{1,5})[.)]\s|\[\w+\]\s")
_KINDS = {"Fig": "Figure", "Tab": "Table"}
_ENDS_SENTENCE = re.compile(r"[.!?:;…][\"'”’)\]]*$")
_HYPHENS = "-\u00ad\u2010"
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_LAST_PART = re.compile(r"([^\W\d_]+)$")
_FIRST_PART = re.compile(r"^([^\W\d_]+)")
# Only ligatures: other characters with a compatibility decomposition (², ½, ™) would lose meaning.
_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}
_SPACES = re.compile(r"[\s\u00a0\u2000-\u200b\ufeff]+")
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


@dataclass
class Paragraph:
    """A paragraph: its lines and their joined text."""

    kind: Kind
    lines: list[Line]
    is_indented: bool = False
    ends_short: bool = False  # the next line's first word would have had room on the last line
    text: str = ""


def make_paragraphs(blocks: Sequence[Block]) -> list[Paragraph]:
    """Reflow blocks in reading order; whatever interrupts a paragraph is placed after it."""
    paragraphs: list[Paragraph] = []
    waiting: list[Paragraph] = []
    running: Paragraph | None = None
    note: Paragraph | None = None
    for block in blocks:
        if block.kind == "body":
            pieces = list(_pieces(block.lines))
            # Only a block's first piece may continue an earlier paragraph; within it, the ends are known.
            may_go_on = True
            for number, piece in enumerate(pieces):
                if running is not None and _parts_word(running, pieces, number):
                    waiting.append(piece)
                elif may_go_on and running is not None and _goes_on(running, piece):
                    running.lines.extend(piece.lines)
                    running.ends_short = piece.ends_short
                    may_go_on = False
                else:
                    paragraphs += [*waiting, piece]
                    waiting, running, may_go_on = [], piece, False
        elif block.kind == "footnote":
            for lines in split(block.lines, lambda _, line: note_mark(line) is not None):
                if note_mark(lines[0]) is None and note is not None:
                    note.lines.extend(lines)  # continued in another column
                else:
                    note = Paragraph("footnote", lines)
                    waiting.append(note)
        elif block.kind == "caption":
            waiting.append(Paragraph("caption", list(block.lines)))
    paragraphs += waiting
    _write_texts(paragraphs, blocks)
    return [paragraph for paragraph in paragraphs if paragraph.text]


def ends_sentence(text: str) -> bool:
    """Return whether a line ends a sentence, ignoring closing quotation marks and brackets."""
    return bool(_ENDS_SENTENCE.search(text))


def _pieces(lines: Sequence[Line]) -> Iterator[Paragraph]:
    """Split the lines of one column into paragraphs; the first and the last may continue in other columns."""
    leading = usual_leading(lines)
    edges = [_edges(lines, index) for index in range(len(lines))]
    begin = 0
    for index in range(1, len(lines) + 1):
        if index == len(lines) or _begins(lines, begin, index, leading, edges):
            first, last = lines[begin], lines[index - 1]
            room = lines[index].words[0].width if index < len(lines) else 3 * last.size
            yield Paragraph(
                "body",
                list(lines[begin:index]),
                is_indented=first.box.left - edges[begin][0] > _INDENT * first.size,
                ends_short=_has_room(last, room, edges[index - 1][1]),
            )
            begin = index


def _edges(lines: Sequence[Line], index: int) -> tuple[float, float]:
    """Return the left and right edges of the text around a line, in points."""
    line = lines[index]
    near = [other for other in lines[max(0, index - _NEIGHBOURS) : index + _NEIGHBOURS + 1] if _same_size(other, line)]
    if len(near) == 1:
        return line.box.left, line.right
    lefts = [other.box.left for other in near]
    # A single line that sticks out does not define the edge.
    shared = [left for left in lefts if sum(abs(left - other) <= _SAME_EDGE for other in lefts) >= 2]
    return min(shared or lefts), max(other.box.right for other in near)


def _begins(
    lines: Sequence[Line], begin: int, index: int, leading: float, edges: Sequence[tuple[float, float]]
) -> bool:
    """Return whether a line begins a paragraph; `begin` is the first line of the previous one."""
    line, above = lines[index], lines[index - 1]
    if line.baseline - above.baseline > _WIDE_GAP * max(leading, 1.1 * line.size) or _is_other_type(line, above):
        return True
    left, right = edges[index]
    if line.is_code != above.is_code and _is_edge_of_code(lines, begin, index, left):
        return True
    if above.text.endswith("-") or (line.is_code and above.is_code):
        return False
    indent, indent_above = line.box.left - left, above.box.left - left
    is_item, in_item = bool(_ITEM.match(line.text)), bool(_ITEM.match(lines[begin].text))
    if is_item and (in_item or ends_sentence(above.text) or indent > _INDENT * line.size):
        return True
    # The lines of a centered title have different lengths but the same middle.
    is_centred = abs(line.box.left + line.box.right - above.box.left - above.box.right) < 0.4 * line.size
    is_indented = indent > _INDENT * line.size >= indent_above and not is_centred
    if is_indented and not in_item and not _hangs(lines, begin, index, left):
        return True
    # Back at the edge after two or more indented lines: a quotation or a list item has ended.
    if indent <= _INDENT * line.size < indent_above and (index - begin >= 2 or in_item):
        return True
    starts_anew = not line.text[:1].islower() and (ends_sentence(above.text) or line.text[:1].isupper())
    return starts_anew and _has_room(above, line.words[0].width, right)


def _hangs(lines: Sequence[Line], begin: int, index: int, left: float) -> bool:
    """Return whether most surrounding lines are indented, as in lists of references (hanging indents)."""
    near = lines[max(0, index - _NEIGHBOURS) : index + _NEIGHBOURS + 1]
    inside = sum(other.box.left - left > _INDENT * other.size for other in near)
    return index - begin == 1 and inside * 2 >= len(near) > 3


def _has_room(line: Line, width: float, right: float) -> bool:
    return line.box.right + 0.25 * line.size + width + _ROOM * line.size < right


def _same_size(line: Line, other: Line) -> bool:
    return abs(line.size - other.size) <= _OTHER_SIZE * max(line.size, other.size)


def _is_other_type(line: Line, other: Line) -> bool:
    """Return whether the type size differs, or only one line is bold, as for a heading."""
    return not _same_size(line, other) or line.is_bold != other.is_bold


def _is_edge_of_code(lines: Sequence[Line], begin: int, index: int, left: float) -> bool:
    """Return whether a listing begins or ends; a line of prose may be all monospaced by chance."""
    if lines[index - 1].is_code:
        return all(other.is_code for other in lines[begin:index])
    is_alone = index + 1 == len(lines) or not lines[index + 1].is_code
    is_flush = abs(lines[index].box.left - left) <= _SAME_EDGE
    return not (is_alone and is_flush) or ends_sentence(lines[index - 1].text)


def _goes_on(running: Paragraph, piece: Paragraph) -> bool:
    """Return whether a paragraph continues in the next column, on the next page, or below an interruption."""
    last, first = running.lines[-1], piece.lines[0]
    if _is_other_type(last, first) or _ITEM.match(first.text) or _is_listing(running) != _is_listing(piece):
        return False
    if last.text[-1:] in "-\u00ad" or first.text[:1].islower():
        return True
    return not piece.is_indented and not running.ends_short


def _parts_word(running: Paragraph, pieces: Sequence[Paragraph], number: int) -> bool:
    """Return whether a piece separates the parts of a broken word: a foot or head that was not removed as a repeat."""
    last, first = running.lines[-1], pieces[number].lines[0]
    if last.text[-1:] not in "-\u00ad" or _goes_on_in_word(last, first):
        return False
    if first.page == last.page:
        is_below = first.baseline > last.baseline
        return is_below and sum(len(piece.lines) for piece in pieces[number:]) <= _MOST_LINES_OF_A_FOOT
    is_short = len(pieces[number].lines) <= _MOST_LINES_OF_A_FOOT
    return number == 0 and is_short and len(pieces) > 1 and _goes_on_in_word(last, pieces[1].lines[0])


def _goes_on_in_word(last: Line, first: Line) -> bool:
    return first.text[:1].islower() and not _is_other_type(last, first)


def _write_texts(paragraphs: Sequence[Paragraph], blocks: Sequence[Block]) -> None:
    vocabulary = Vocabulary(line.text for block in blocks for line in block.lines)
    notes = [line for block in blocks if block.kind == "footnote" for line in block.lines]
    marks = {(line.page, note_mark(line)) for line in notes}
    for paragraph in paragraphs:
        if _is_listing(paragraph):
            paragraph.text = _listing(paragraph.lines)
        else:
            text = ""
            for line in paragraph.lines:
                is_note = paragraph.kind == "footnote" and line is paragraph.lines[0]
                text = vocabulary.join(text, clean(line.text if is_note else _without_marks(line, marks)))
            paragraph.text = _labelled(paragraph, text)


def _without_marks(line: Line, marks: set[tuple[int, str | None]]) -> str:
    """Remove the marks of notes, but not the spaces after them."""
    is_mark = [line.is_raised(word) and (line.page, word.text) in marks for word in line.words]
    return joined(replace(word, text="") if mark else word for word, mark in zip(line.words, is_mark, strict=True))


def _is_listing(paragraph: Paragraph) -> bool:
    return all(line.is_code for line in paragraph.lines)


def _listing(lines: Sequence[Line]) -> str:
    """Return code with its line breaks, and its indentation as spaces."""
    left = min(line.box.left for line in lines)
    letter = max(lines[0].box.width / max(1, len(lines[0].text)), 0.1)
    return "\n".join(" " * round((line.box.left - left) / letter) + clean(line.text) for line in lines)


def _labelled(paragraph: Paragraph, text: str) -> str:
    """Format captions as `[Figure 3: …]` and notes as `[Footnote 3: …]`."""
    if paragraph.kind == "caption" and (match := CAPTION.match(text)):
        kind = match.group("kind").rstrip(".").capitalize()
        name = f"{_KINDS.get(kind, kind)} {match.group('number')}"
        text = text[match.end() :].strip()
    elif paragraph.kind == "footnote" and (mark := note_mark(paragraph.lines[0])):
        name = f"Footnote {mark}" if mark[0].isdigit() else "Footnote"
        text = text[len(mark) :].lstrip(".) ").strip()
    else:
        return text
    return f"[{name}: {text}]" if text else f"[{name}]"


class Vocabulary:
    """The frequency of words in a document, which distinguishes spelling hyphens from line-break hyphens."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._counts: Counter[str] = Counter()
        for line in lines:
            words = _WORD.findall(line.casefold())
            # The last word may be the part before a break.
            self._counts.update(words[:-1] if line and line[-1] in _HYPHENS else words)

    def join(self, line: str, following: str) -> str:
        """Join two lines of a paragraph with a space, with nothing, or with the hyphen at the end of the first.

        A broken word loses its hyphen, unless the document elsewhere has it more often with a hyphen than without, or
        it continues with a capital letter or a number.
        """
        if not line or not following:
            return line + following
        if line[-1] in "—–" and not line[:-1].endswith(" "):
            return line + following
        before, after = _LAST_PART.search(line[:-1]), _FIRST_PART.match(following)
        if line[-1] not in _HYPHENS or not line[-2:-1].isalnum() or not following[0].isalnum():
            return f"{line} {following}"
        if before is None or after is None or not following[0].islower():
            return f"{line[:-1]}-{following}"
        parts = before.group().casefold(), after.group().casefold()
        if self._counts["-".join(parts)] > self._counts["".join(parts)]:
            return f"{line[:-1]}-{following}"
        return line[:-1] + following


def clean(text: str) -> str:
    """Replace ligatures by letters and any white space by single spaces, and drop control characters.

    A soft hyphen is visible only at the end of a line.
    """
    if text.endswith("\u00ad"):
        text = text[:-1] + "-"
    # pdfium counts in UTF-16: a character beyond U+FFFF comes as a surrogate pair.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = unicodedata.normalize("NFC", text.translate(_LIGATURES).replace("\u00ad", "").translate(_CONTROLS))
    return _SPACES.sub(" ", text).strip()
