"""How much of a text comes back from its PDFs, word by word and in order?

    python benchmarks/_pdf_agreement.py                # twenty articles by each program that is installed, and a book
    python benchmarks/_pdf_agreement.py --articles 2    # a minute, to see that everything runs

Articles of made-up words (a title and an abstract across the page, sections, footnotes, a figure, a table, running
heads, page numbers, references) are printed by reportlab in a lay-out of our own, by LaTeX, LibreOffice, Chromium and
matplotlib, and read again by `longlora corpus from-pdf`'s reader. Agreement is 2 × matches / (words printed + words
read), over the words of title, abstract, headings and paragraphs in reading order, matched in order as difflib does;
captions and footnotes, which may stand elsewhere, are counted apart, as those found whole. Beside it stand the medians
of the plain text of pdfium, and of pdfminer.six where it is installed: both keep heads, notes, tables and references.
"""

import argparse
import importlib.metadata
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import _report
import torch
from _articles import Article, agreement, make_article, without_asides, words_of
from _other_printers import PRINTERS
from _reportlab_pages import print_article, print_book

from longlora.corpus.pdf.document import read_pdf

# What each program's lay-out has beside the text.
NO_NOTES = ("Chromium", "matplotlib")
BOOK = "pg19/train/herman-melville-moby-dick.txt"
BOOK_CHARACTERS = 620_000
COMPARED_WORDS = 20_000  # the comparison's time grows with the square of the length


@dataclass
class Row:
    """What one way of printing gave."""

    program: str
    documents: int
    pages: int
    least: float
    median: float
    notes: str
    seconds_per_page: float
    plain: dict[str, float]
    """Medians of what other readers give."""

    @property
    def cells(self) -> str:
        """The row as Markdown."""
        shares = f"{100 * self.least:.2f} % | {100 * self.median:.2f} %"
        times = f"{self.seconds_per_page:.3f}"
        plain = "".join(f" {100 * share:.1f} % |" for share in self.plain.values())
        return f"| {self.program} | {self.documents} | {self.pages} | {shares} | {self.notes} | {times} |{plain}"


def by_pdfium(path: Path) -> str:
    """Read a PDF as pdfium does; it marks hyphens at the ends of lines."""
    import pypdfium2

    with pypdfium2.PdfDocument(path) as document:
        text = "\n".join(page.get_textpage().get_text_range() for page in document)
    return text.replace("\ufffe", "").replace("\x02", "")


def by_pdfminer(path: Path) -> str:
    """Read a PDF as pdfminer.six does."""
    from pdfminer.high_level import extract_text

    return str(extract_text(path))


READERS = {"pdfium alone": by_pdfium}
if importlib.util.find_spec("pdfminer"):
    READERS[f"pdfminer.six {importlib.metadata.version('pdfminer.six')}"] = by_pdfminer


def measure(name: str, printer: Callable[[Path, Article], None], count: int, folder: Path) -> Row:
    """Print articles and read them."""
    has_notes = not name.startswith(NO_NOTES)
    shares, pages, seconds, found, wanted = [], 0, 0.0, 0, 0
    plain: dict[str, list[float]] = {reader: [] for reader in READERS}
    for seed in range(count):
        article = make_article(seed, num_sections=5 + seed % 4, notes=has_notes)
        path = folder / "article.pdf"
        printer(path, article)
        begin = time.process_time()
        read = read_pdf(path)
        seconds += time.process_time() - begin
        shares.append(agreement(article.words, words_of(without_asides(read.text))))
        for reader, act in READERS.items():
            plain[reader].append(agreement(article.words, words_of(act(path))))
        pages += read.num_pages
        asides = " ".join(part for part in read.text.split("\n\n") if part.startswith("["))
        found += sum(note in asides for note in article.notes)
        wanted += len(article.notes)
    notes = f"{found} of {wanted}" if wanted else "–"
    medians = {reader: statistics.median(found) for reader, found in plain.items()}
    return Row(name, count, pages, min(shares), statistics.median(shares), notes, seconds / pages, medians)


def measure_book(text: str, folder: Path) -> Row:
    """Print a real book and read it."""
    text = text[:BOOK_CHARACTERS].encode("latin-1", "ignore").decode("latin-1")
    path = folder / "book.pdf"
    print_book(path, text, head="Moby Dick")
    begin = time.process_time()
    read = read_pdf(path)
    seconds = time.process_time() - begin
    printed = words_of(text)

    def in_parts(found: list[str]) -> list[float]:
        starts = range(0, max(len(printed), len(found)), COMPARED_WORDS)
        return [agreement(printed[at : at + COMPARED_WORDS], found[at : at + COMPARED_WORDS]) for at in starts]

    shares = in_parts(words_of(read.text))
    medians = {reader: statistics.median(in_parts(words_of(act(path)))) for reader, act in READERS.items()}
    per_page = seconds / read.num_pages
    name = "reportlab, a book in one column"
    return Row(name, 1, read.num_pages, min(shares), statistics.median(shares), "–", per_page, medians)


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=int, default=20, help="Articles by each program.")
    parser.add_argument("--output", type=Path, default=_report.RESULTS, help="Folder for the report.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    origin = _report.provenance(torch.device("cpu"), ("longlora", "pypdfium2"))
    ours = {
        "reportlab, one column": partial(print_article, columns=1),
        "reportlab, two columns": print_article,
        "reportlab, two columns, written across": partial(print_article, across=True),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, printer in (ours | PRINTERS).items():
            rows.append(measure(name, printer, arguments.articles, Path(folder)))
            print(rows[-1].cells, flush=True)
        book = _report.REPOSITORY.parent / "shared" / "data" / BOOK
        if book.is_file():
            rows.append(measure_book(book.read_text(encoding="utf-8"), Path(folder)))
            print(rows[-1].cells)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "pdf-agreement.md").write_text(report(rows, _report.finished(origin)), encoding="utf-8")


def report(rows: list[Row], origin: _report.Provenance) -> str:
    """Write what was measured, and where."""
    about = (__doc__ or "").split("\n\n")[2].replace("\n", " ")
    lines = [
        "# Text read back from PDFs",
        "",
        about,
        "",
        "| printed by | documents | pages | least agreement | median | footnotes whole | processor seconds a page | "
        + " | ".join(READERS)
        + " |",
        f"| --- | ---: | ---: | ---: | ---: | ---: | ---: |{' ---: |' * len(READERS)}",
        *(row.cells for row in rows),
        "",
        f"`{origin.command}`, {origin.device}, {origin.versions}, {origin.date}, commit {origin.commit}, "
        f"load {origin.load}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
