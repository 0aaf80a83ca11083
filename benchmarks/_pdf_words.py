"""Which words of real PDFs are extracted, page by page, compared with pdfium, poppler and pdfminer.six?

    python benchmarks/_pdf_words.py FOLDER …              # every PDF below, by longlora's reader; a second for 20 pages
    python benchmarks/_pdf_words.py FOLDER … --name held  # into results/pdf-words-held.jsonl and .md
    python benchmarks/_pdf_words.py                       # rewrite the page from the existing rows

Three questions about each file. Words are runs of three letters or more, without case and accents, since every reader
joins the single letters of formulas differently.

- *Pages*: on how many pages do we find fewer than 98 % of pdfium's words? Words are counted before lines are joined
  and include those left out on purpose, which are also counted by kind.
- *Recall*: what share of poppler's words (`pdftotext`) is in our text, with and without what is left out on purpose?
  For comparison, the share of poppler's words in pdfium's own text.
- *Order*: what share of our runs of six words, including short words, is in poppler's text or in pdfium's? For
  comparison: what share of each reader's runs is in poppler's text alone? This was measured later, with 106 of the
  136 files (`pdf-words-order.md`): the manuals that could be downloaded again, without xesearch.pdf, on which
  pdfminer.six did not finish in two minutes of CPU time. Two made-up articles in two columns were added. Their text
  is known, so that every reader is compared with it; one file has its lines row by row across both columns.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _articles
import _report
import _reportlab_pages
import pypdfium2
import torch

from longlora.corpus.extract import pdf_notes
from longlora.corpus.pdf.document import read_pdf
from longlora.errors import DataError

LEAST = 0.98
RUN = 6
ENOUGH_WORDS = 200  # of a file, for its order to count: a label has no run of six words
PACKAGES = ("longlora", "pypdfium2", *(("pdfminer.six",) if find_spec("pdfminer") else ()))
MOST_PAGES = 150  # a book of a thousand pages would outweigh the rest
# Not letters: the separate accents of old TeX. Its ligatures have the codes of control characters.
ACCENTS = dict.fromkeys(map(ord, "`´ˆ^˜~¨ˇ˘˙˚¯˝¸˛"), None)
LIGATURES = dict(zip((*range(0x0B, 0x10), *range(0x1B, 0x20)), 2 * ("ff", "fi", "fl", "ffi", "ffl"), strict=True))


def words_of(text: str) -> list[str]:
    """Return the words of a text: letters and digits, without case, accents and soft hyphens."""
    plain = unicodedata.normalize("NFKD", text.translate(ACCENTS).replace("\u00ad", "")).replace("\u0131", "i")
    return re.findall(r"[^\W_]+", "".join(it for it in plain if not unicodedata.combining(it)).casefold())


def bag(text: str) -> Counter[str]:
    """Count the words of three letters or more."""
    return Counter(word for word in words_of(text) if len(word) > 2 and word.isalpha())


def runs(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    """Count the runs of six words."""
    return Counter(tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1))


def share(some: Counter[Any], of: Counter[Any]) -> float:
    """Return the share of a bag that is also in another."""
    return (some & of).total() / max(1, of.total())


def pdfium_pages(path: Path) -> list[str]:
    """Return the text of each page from pdfium, which has its own codes for end-of-line hyphens and line breaks."""
    with pypdfium2.PdfDocument(path) as document:
        texts = [page.get_textpage().get_text_range().replace("\r\n", "\n") for page in document]
    return [re.sub("[\ufffe\x02]", "\ufffe", text).translate(LIGATURES) for text in texts]


def by_poppler(path: Path) -> str:
    """Return the text of a PDF from poppler, with words joined across line breaks."""
    done = subprocess.run(["pdftotext", "-enc", "UTF-8", str(path), "-"], capture_output=True, check=True)
    return joined(done.stdout.decode("utf-8", "replace").translate({0x0C: "\n"}))


def by_pdfminer(path: Path) -> str | None:
    """Return the text of a PDF from pdfminer.six, with words joined across line breaks; none if it is not installed."""
    if "pdfminer.six" not in PACKAGES:
        return None
    from pdfminer.high_level import extract_text

    return joined(extract_text(path).replace("\f", "\n").translate(LIGATURES))


def joined(text: str) -> str:
    """Join words across line breaks."""
    return re.sub(r"(?<=[^\W\d_])[-\u00ad\u2010]\n\s*(?=[^\W\d_])", "", text)


@dataclass(kw_only=True)
class Measured:
    """The results for one file, as shares of words."""

    name: str
    producer: str
    pages: int
    words: int = 0
    of_poppler: int = 0
    """Number of poppler's words."""
    poor_pages: list[int] = field(default_factory=list)
    least_page: float = 1.0
    in_text: float = 0.0
    with_left_out: float = 0.0
    of_pdfium: float = 0.0
    order: float = 0.0
    orders: dict[str, float] = field(default_factory=dict)
    """Share of each reader's runs of words in poppler's text, or in the known text if there is one."""
    left_out: dict[str, int] = field(default_factory=dict)
    has_note: bool = False
    refused: str = ""

    @property
    def cells(self) -> str:
        """The row as Markdown."""
        start = f"| {self.name} | {self.producer} | {self.pages} |"
        if self.refused:
            return f"{start} refused: {self.refused} | | | | | | |"
        poor = ", ".join(map(str, self.poor_pages[:6])) + (", …" if len(self.poor_pages) > 6 else "")
        shares = (self.of_pdfium, self.in_text, self.with_left_out, self.order)
        values = " | ".join(f"{100 * value:.1f}" for value in shares)
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.left_out.items())
        return f"{start} {self.words} | {100 * self.least_page:.1f} | {poor} | {values} | {kinds} |"


def measure(path: Path, known: str | None = None) -> Measured:
    """Read a file, perhaps one whose text is known, with longlora, pdfium, poppler and pdfminer.six."""
    plain = pdfium_pages(path)
    with pypdfium2.PdfDocument(path) as document:
        producer = document.get_metadata_value("Producer") or document.get_metadata_value("Creator")
    row = Measured(name=path.name, producer=" ".join(producer.replace("|", " ").split())[:32], pages=len(plain))
    try:
        read = read_pdf(path)
    except DataError as error:
        row.refused = str(error)
        return row
    row.left_out = {kind: len(words) for kind, words in read.left_out.items()}
    row.has_note = bool(pdf_notes(read))
    if not read.text.strip():
        row.refused = "without text that training could use"
    aside = Counter(part for words in read.left_out.values() for _, word in words for part in bag(word).elements())
    ours = [Counter[str]() for _ in plain]
    for paragraph in read.paragraphs:
        for line in paragraph.lines:
            ours[line.page - 1].update(bag(line.text))
    for kind, words in read.left_out.items():
        for page, word in words if kind != "references" else ():
            ours[page - 1].update(bag(word))
    for number, (text, found) in enumerate(zip(plain, ours, strict=True), start=1):
        there = bag(text.replace("\ufffe", " "))
        if there.total():
            row.words += there.total()
            kept = share(found, there)
            row.least_page = min(row.least_page, kept)
            if kept < LEAST and (there - found).total() > 2:
                row.poor_pages.append(number)
    theirs, own = by_poppler(path), "\n".join(plain).replace("\ufffe", "")
    row.of_poppler = bag(theirs).total()
    row.in_text = share(bag(read.text), bag(theirs))
    row.with_left_out = share(bag(read.text) + aside, bag(theirs))
    row.of_pdfium = share(bag(own), bag(theirs))
    row.order = share(runs(words_of(theirs)) | runs(words_of(own)), runs(words_of(read.text)))
    texts = {"ours": read.text, "pdfium": own, "pdfminer.six": by_pdfminer(path), "poppler": known and theirs}
    reference = runs(words_of(known or theirs))
    row.orders = {name: share(reference, runs(words_of(text))) for name, text in texts.items() if text is not None}
    return row


def main() -> None:
    """Measure, print and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="Folders of PDFs.")
    parser.add_argument("--name", default="", help="Of the report.")
    parser.add_argument("--output", type=Path, default=_report.RESULTS, help="Folder for rows and report.")
    arguments = parser.parse_args()
    stem = arguments.output / (f"pdf-words-{arguments.name}" if arguments.name else "pdf-words")
    rows_file = stem.with_suffix(".jsonl")
    if arguments.folders:
        if shutil.which("pdftotext") is None:
            parser.error("pdftotext must be installed (poppler-utils)")
        if "pdfminer.six" not in PACKAGES:
            print("without pdfminer.six, which is not installed")
        origin = _report.provenance(torch.device("cpu"), PACKAGES)
        rows = measure_all(arguments.folders)
        lines = [asdict(_report.finished(origin)), *map(asdict, rows)]
        rows_file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    page = page_of(rows_file)
    stem.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page.split("\n\n| file")[0])


def measure_all(folders: Sequence[Path]) -> list[Measured]:
    """Measure every PDF of at most `MOST_PAGES` pages."""
    rows = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.pdf")):
        with pypdfium2.PdfDocument(path) as document:
            num_pages = len(document)
        if num_pages <= MOST_PAGES:
            rows.append(measure(path))
            print(rows[-1].cells, flush=True)
    return [*rows, *measure_articles()]


def measure_articles() -> list[Measured]:
    """Measure two made-up articles in two columns; the lines of the second are in the file row by row across both."""
    article, rows = _articles.make_article(1), []
    with tempfile.TemporaryDirectory() as folder:
        for name, across in (("made-up-by-columns.pdf", False), ("made-up-across-columns.pdf", True)):
            _reportlab_pages.print_article(Path(folder, name), article, columns=2, across=across)
            rows.append(measure(Path(folder, name), article.all_text))
    return rows


def page_of(rows_file: Path) -> str:
    """Return the page for the rows in a file."""
    origin, *rows = (json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines())
    return "\n".join(lines_of([Measured(**row) for row in rows], _report.Provenance(**origin))) + "\n"


def lines_of(rows: Sequence[Measured], origin: _report.Provenance) -> list[str]:
    """Return the lines of the page: results and provenance."""
    read = [row for row in rows if not row.refused]
    told = [row for row in read if row.of_poppler]
    kinds = Counter[str]()
    for row in read:
        kinds.update(row.left_out)

    def spread(values: Sequence[float]) -> str:
        return f"{100 * statistics.median(values):.1f} % at the median, {100 * min(values):.1f} % at least"

    poor = sum(len(row.poor_pages) for row in read)
    low = [row for row in told if row.in_text < 0.9]
    silent = [f"{row.name} (pdfium: {row.of_pdfium:.0%})" for row in low if not row.has_note]
    behind = [row.name for row in read if row.with_left_out < row.of_pdfium - 0.02]
    return [
        "# Words of real PDFs",
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
        f"{len(rows)} files of {len({row.producer for row in rows})} programs, {sum(row.pages for row in rows):,} "
        f"pages, {sum(row.words for row in read):,} words; {len(rows) - len(read)} refused, "
        f"{len(read) - len(told)} without a word of poppler's.",
        "",
        f"- Pages with fewer than 98 % of pdfium's words: {poor} of {sum(row.pages for row in read):,}.",
        f"- Recall of poppler's words, with what is left out: {spread([row.with_left_out for row in told])}; in the "
        f"text alone: {spread([row.in_text for row in told])}.",
        f"- Recall of poppler's words by pdfium's plain text: {spread([row.of_pdfium for row in told])}.",
        f"- Runs of six words that poppler or pdfium has too: {spread([row.order for row in read])}.",
        f"- Left out on purpose: {', '.join(f'{count:,} words of {kind}' for kind, count in kinds.most_common())}.",
        f"- Files with fewer of poppler's words than pdfium has, by more than 2 points: {', '.join(behind) or 'none'}.",
        f"- Files whose text has less than 90 % of poppler's words: {len(low)}; those without a note in their record "
        f"that says what is missing: {', '.join(silent) or 'none'}.",
        "",
        "| file | program | pages | words | poorest page, % | pages below 98 % | pdfium's recall, % | ours, text "
        "alone | ours | order | left out |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |",
        *(row.cells for row in rows),
        "",
        *order_lines(read),
        f"`{origin.command}`, {origin.device}, {origin.versions}, {origin.date}, commit {origin.commit}.",
    ]


def order_lines(rows: Sequence[Measured]) -> list[str]:
    """Return the section that compares the orders of the readers, if they were measured."""
    rows = [row for row in rows if row.orders]
    if not rows:
        return []
    known = [row for row in rows if "poppler" in row.orders]
    large = [row for row in rows if row not in known and row.words >= ENOUGH_WORDS]
    readers = [name for name in ("ours", "pdfium", "pdfminer.six", "poppler") if any(name in it.orders for it in rows)]

    def shares(row: Measured) -> str:
        return " | ".join(f"{100 * row.orders[name]:.1f}" if name in row.orders else "" for name in readers)

    def summary(name: str) -> str:
        values = [row.orders[name] for row in large if name in row.orders]
        poor = sum(value < 0.9 for value in values)
        return f"- {name}: {100 * statistics.median(values):.1f} % at the median; {poor} files below 90 %."

    return [
        "## Order",
        "",
        f"Share of each reader's runs of six words that are in poppler's text, over {len(large)} files of at least "
        f"{ENOUGH_WORDS} words. Poppler, pdfium and pdfminer.six keep running heads, notes and page numbers where they "
        "are printed; we move or leave them out and join the text around them, so that our runs differ there:",
        "",
        *(summary(name) for name in readers if large and name != "poppler"),
        "",
        f"| file | compared with | {' | '.join(readers)} |",
        f"| --- | --- |{' ---: |' * len(readers)}",
        *(f"| {row.name} | {'known text' if row in known else 'poppler'} | {shares(row)} |" for row in known + large),
        "",
    ]


if __name__ == "__main__":
    main()
