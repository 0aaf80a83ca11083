"""Lay out articles and books with reportlab, by hand: columns, running heads, footnotes, figures and tables."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from _articles import Article, Paragraph
from reportlab.lib.pagesizes import A4
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.pdfgen.textobject import PDFTextObject

REGULAR, BOLD = "Times-Roman", "Times-Bold"
SIZE, LEADING = 10.0, 12.0
NOTE_SIZE, NOTE_LEADING = 8.0, 9.5
MARGIN = 60.0
GUTTER = 18.0
INDENT = 12.0


def break_lines(text: str, width: float, *, size: float = SIZE, font: str = REGULAR, indent: float = 0.0) -> list[str]:
    """Fill lines greedily; a word that does not fit is hyphenated, with at least three letters on both sides."""
    lines: list[str] = []
    line = ""
    room = width - indent
    for word in text.split():
        longer = f"{line} {word}".strip()
        if stringWidth(longer, font, size) <= room:
            line = longer
            continue
        for cut in range(len(word) - 3, 2, -1):
            part = f"{line} {word[:cut]}-".strip()
            if word[:cut].isalpha() and word[cut:].strip(".").isalpha() and stringWidth(part, font, size) <= room:
                line, word = part, word[cut:]
                break
        lines.append(line)
        line, room = word, width
    return [*lines, line]


@dataclass
class _Place:
    """One column of one page: the position of the next line, and the notes for its foot."""

    left: float
    width: float
    top: float
    bottom: float
    notes: list[str] = field(default_factory=list)


class ArticlePrinter:
    """Prints an article in one or two columns; with `across`, the file has the lines row by row across both."""

    def __init__(self, path: Path, article: Article, *, columns: int = 2, across: bool = False) -> None:
        self.article, self.columns, self.across = article, columns, across
        self.waiting: list[tuple[float, float, PDFTextObject]] = []
        self.canvas = Canvas(str(path), pagesize=A4, pageCompression=1)
        self.page_width, self.page_height = A4
        self.page = 0
        self.num_notes = 0
        self.places: list[_Place] = []
        self.note_lines: list[tuple[str, float]] = []

    def print(self) -> None:
        """Write the file."""
        self._new_page(first=True)
        article = self.article
        halfway = len(article.sections) // 2
        for number, section in enumerate(article.sections):
            self._lines([section.heading], font=BOLD, size=11.0, before=8.0)
            for paragraph in section.paragraphs:
                self._paragraph(paragraph)
            if number == halfway - 1 and article.figure:
                self._figure()
            if number == halfway and article.table:
                self._table()
        if article.references:
            self._lines(["References"], font=BOLD, size=11.0, before=8.0)
            for entry in article.references:
                self._lines(break_lines(entry, self.place.width), before=2.0)
        self._finish_page()
        self.canvas.save()

    @property
    def place(self) -> _Place:
        return self.places[0]

    def _new_page(self, *, first: bool = False) -> None:
        if not first:
            self._finish_page()
        self.page += 1
        canvas = self.canvas
        if self.article.running_head:
            canvas.setFont(REGULAR, 9)
            canvas.drawString(MARGIN, self.page_height - 36, f"{self.article.running_head}")
            canvas.drawCentredString(self.page_width / 2, 30, str(self.page + 40))
        top = self.page_height - MARGIN - 10
        full = self.page_width - 2 * MARGIN
        if first:
            top = self._title(top, full)
        width = (full - (self.columns - 1) * GUTTER) / self.columns
        self.places = [_Place(MARGIN + index * (width + GUTTER), width, top, MARGIN) for index in range(self.columns)]

    def _title(self, top: float, full: float) -> float:
        canvas, article = self.canvas, self.article
        canvas.setFont(BOLD, 17)
        for line in break_lines(article.title, full - 60, size=17, font=BOLD):
            canvas.drawCentredString(self.page_width / 2, top - 17, line)
            top -= 21
        top -= 10
        for index, line in enumerate(lines := break_lines(article.abstract.text, full - 60)):
            self._justified(line, MARGIN + 30, top - SIZE, full - 60, is_last=index == len(lines) - 1)
            top -= LEADING
        return top - 14

    def _justified(
        self, line: str, x: float, y: float, width: float, *, is_last: bool, size: float = SIZE, font: str = REGULAR
    ) -> None:
        text = self.canvas.beginText(x, y)
        text.setFont(font, size)
        spaces = line.count(" ")
        is_stretched = spaces and not is_last  # settings of an earlier text object persist
        text.setWordSpace((width - stringWidth(line, font, size)) / spaces if is_stretched else 0)
        text.textOut(line)
        self.waiting.append((-y, x, text))
        if not self.across:
            self._write_lines()

    def _write_lines(self) -> None:
        for _, _, text in sorted(self.waiting, key=lambda line: line[:2]):
            self.canvas.drawText(text)
        self.waiting = []

    def _lines(self, lines: list[str], *, font: str = REGULAR, size: float = SIZE, before: float = 0.0) -> None:
        for index, line in enumerate(lines):
            self._room(LEADING + (before if index == 0 else 0.0) + (30 if font == BOLD else 0))
            place = self.place
            place.top -= before if index == 0 else 0.0
            self._justified(line, place.left, place.top - size, place.width, is_last=True, size=size, font=font)
            place.top -= LEADING

    def _room(self, height: float) -> None:
        if self.place.top - height < self.place.bottom:
            self._foot(self.places.pop(0))
            if not self.places:
                self._new_page()

    def _paragraph(self, paragraph: Paragraph) -> None:
        note_lines: list[str] = []
        first_words = len(paragraph.sentences[0].split())
        if paragraph.note:
            self.num_notes += 1
            note_lines = break_lines(f"{self.num_notes} {paragraph.note}", self.place.width - 8, size=NOTE_SIZE)
            self._room(LEADING * 8 + NOTE_LEADING * (len(note_lines) + 1))
            self.place.bottom += NOTE_LEADING * len(note_lines) + (0 if self.place.notes else 6)
            self.place.notes += note_lines
        lines = break_lines(paragraph.text, self.place.width, indent=INDENT)
        passed = 0
        for index, line in enumerate(lines):
            self._room(LEADING)
            place = self.place
            indent = INDENT if index == 0 else 0.0
            x, y = place.left + indent, place.top - SIZE
            self._justified(line, x, y, place.width - indent, is_last=index == len(lines) - 1)
            here = passed + len(line.split()) - (1 if line.endswith("-") else 0)
            if paragraph.note and passed < first_words <= here:
                self._mark(line, first_words - passed, x, y, place.width - indent, index == len(lines) - 1)
            passed = here
            place.top -= LEADING

    def _mark(self, line: str, words: int, x: float, y: float, width: float, is_last: bool) -> None:
        """Print the note's number as a superscript after a word; the following space is wide enough for it."""
        spaces = line.count(" ")
        stretch = 0.0 if is_last or not spaces else (width - stringWidth(line, REGULAR, SIZE)) / spaces
        before = " ".join(line.split()[:words])
        place = x + stringWidth(before, REGULAR, SIZE) + stretch * (words - 1)
        self.canvas.setFont(REGULAR, 5)
        self.canvas.drawString(place, y + 3.6, str(self.num_notes))

    def _foot(self, place: _Place) -> None:
        if not place.notes:
            return
        canvas = self.canvas
        y = MARGIN + NOTE_LEADING * (len(place.notes) - 1)
        canvas.setLineWidth(0.4)
        canvas.line(place.left, y + NOTE_LEADING, place.left + 60, y + NOTE_LEADING)
        for line in place.notes:
            text = canvas.beginText(place.left, y)
            text.setWordSpace(0)  # the stretch of the column's last line would push the note into the gutter
            mark, _, rest = line.partition(" ")
            if mark.isdigit() and int(mark) <= self.num_notes:
                text.setFont(REGULAR, 5)
                text.setRise(3)
                text.textOut(mark)
                text.setRise(0)
                text.setTextOrigin(place.left + 5, y)
                line = rest
            text.setFont(REGULAR, NOTE_SIZE)
            text.textOut(line)
            canvas.drawText(text)
            y -= NOTE_LEADING

    def _finish_page(self) -> None:
        self._write_lines()
        for place in self.places:
            self._foot(place)
        self.canvas.showPage()

    def _figure(self) -> None:
        caption = break_lines(f"Figure 1: {self.article.figure}", self.place.width, size=9.0)
        self._room(140 + LEADING * (len(caption) + 2))
        place, canvas = self.place, self.canvas
        left, bottom = place.left + 30, place.top - 125
        canvas.line(left, bottom, left + 150, bottom)
        canvas.line(left, bottom, left, bottom + 110)
        canvas.setFont("Helvetica", 6)
        for tick in range(6):
            canvas.line(left + 30 * tick, bottom, left + 30 * tick, bottom - 3)
            canvas.drawCentredString(left + 30 * tick, bottom - 10, f"{tick * 1000}")
            canvas.line(left, bottom + 20 * tick, left - 3, bottom + 20 * tick)
            canvas.drawRightString(left - 5, bottom + 20 * tick - 2, f"{tick / 5:.1f}")
        for step in range(14):
            canvas.line(left + 10 * step, bottom + 90 - 5 * step, left + 10 * step + 10, bottom + 85 - 5 * step)
        canvas.drawString(left + 60, bottom + 100, "loss by tokens")
        place.top = bottom - 16
        self._lines(caption, size=9.0, before=4.0)
        self.place.top -= 10

    def _table(self) -> None:
        rows = [["model", "8k", "16k", "32k"], *self.article.table_rows]
        caption = break_lines(f"Table 1: {self.article.table}", self.place.width, size=9.0)
        self._room(LEADING * (len(rows) + len(caption) + 4))
        self._lines(caption, size=9.0, before=8.0)
        place, canvas = self.place, self.canvas
        place.top -= 6
        canvas.line(place.left, place.top, place.left + place.width, place.top)
        for row in rows:
            for column, cell in enumerate(row):
                canvas.setFont(REGULAR, 9)
                canvas.drawString(place.left + column * place.width / 4, place.top - 9, cell)
            place.top -= 11
            if row is rows[0] or row is rows[-1]:
                canvas.line(place.left, place.top - 1, place.left + place.width, place.top - 1)
        place.top -= 14


def print_article(path: Path, article: Article, *, columns: int = 2, across: bool = False) -> None:
    """Print an article in one or two columns; with `across`, the file has the lines in the wrong order."""
    ArticlePrinter(path, article, columns=columns, across=across).print()


def book_pages(text: str, *, lines_of_a_page: int = 34) -> Iterator[list[tuple[str, bool, bool]]]:
    """Yield the pages of a book with one paragraph per line of text, as lists of `(line, is_first, is_last)`."""
    width = 300.0
    page: list[tuple[str, bool, bool]] = []
    for paragraph in text.split("\n"):
        lines = break_lines(paragraph, width, size=11.0, indent=INDENT) if paragraph.strip() else []
        for index, line in enumerate(lines):
            page.append((line, index == 0, index == len(lines) - 1))
            if len(page) == lines_of_a_page:
                yield page
                page = []
    if page:
        yield page


def print_book(path: Path, text: str, *, head: str, chapter_of: int = 12) -> int:
    """Print a book in one column, with running heads that change by chapter; return the number of pages."""
    canvas = Canvas(str(path), pagesize=(420, 595))
    number = 0
    for number, page in enumerate(book_pages(text), start=1):
        canvas.setFont(REGULAR, 9)
        if number % 2:
            canvas.drawRightString(360, 560, f"Chapter {number // chapter_of + 1}      {number}")
        else:
            canvas.drawString(60, 560, f"{number}      {head}")
        y = 530.0
        for line, is_first, is_last in page:
            indent = INDENT if is_first else 0.0
            text_object = canvas.beginText(60 + indent, y)
            text_object.setFont(REGULAR, 11)
            spaces = line.count(" ")
            stretch = (300 - indent - stringWidth(line, REGULAR, 11)) / spaces if spaces and not is_last else 0
            text_object.setWordSpace(stretch)
            text_object.textOut(line)
            canvas.drawText(text_object)
            y -= 14
        canvas.showPage()
    canvas.save()
    return number
