"""The script that compares our words of PDFs with those of other readers sees what is lost."""

import importlib
import json
import statistics
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("_pdf_words")
    monkeypatch.setattr(module, "by_poppler", lambda path: "\n".join(module.pdfium_pages(path)).replace("\ufffe", ""))
    return module


def test_a_file(script: ModuleType, tmp_path: Path) -> None:
    printing, articles = importlib.import_module("_reportlab_pages"), importlib.import_module("_articles")
    printing.print_article(tmp_path / "a.pdf", articles.make_article(1))
    row = script.measure(tmp_path / "a.pdf")
    assert row.poor_pages == [] and row.with_left_out > 0.98 > row.in_text
    assert row.left_out["references"] > 50 and row.has_note
    report = "\n".join(script.lines_of([row], script._report.provenance(torch.device("cpu"))))
    assert row.cells in report and "1 files of 1 programs" in report and "Three questions" not in report.splitlines()[0]


def test_the_order_of_columns(script: ModuleType) -> None:
    by_columns, across = (row.orders for row in script.measure_articles())
    assert min(by_columns["ours"], across["ours"]) > 0.9 > across["pdfium"]
    assert by_columns["pdfium"] > across["pdfium"] + 0.1
    assert by_columns.keys() - {"pdfminer.six"} == {"ours", "pdfium", "poppler"}


@pytest.mark.parametrize("name", ["pdf-words", "pdf-words-order"])
def test_the_page_says_what_the_rows_say(script: ModuleType, name: str) -> None:
    rows, page = (script._report.RESULTS / f"{name}.{suffix}" for suffix in ("jsonl", "md"))
    assert page.read_text(encoding="utf-8") == script.page_of(rows)


def test_the_text_says_what_the_rows_say_of_order(script: ModuleType) -> None:
    text = (BENCHMARKS.parent / "docs" / "corpus.md").read_text(encoding="utf-8").replace("\n", " ")
    lines = (script._report.RESULTS / "pdf-words-order.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    rows = [row for row in map(json.loads, lines) if row["orders"]]
    across = {name: 100 * share for name, share in rows[-1]["orders"].items()}
    large = [row["orders"] for row in rows if "poppler" not in row["orders"] and row["words"] >= script.ENOUGH_WORDS]
    middle = {name: 100 * statistics.median(orders[name] for orders in large) for name in large[0]}
    assert f"on {len(large)} of the manuals and on two made-up articles" in text
    assert (
        f"{across['ours']:.1f} % of our runs of six words are in the known text, {across['pdfium']:.1f} % of pdfium's, "
        f"{across['pdfminer.six']:.1f} % of pdfminer.six's and {across['poppler']:.1f} % of poppler's"
    ) in text
    assert (
        f"{middle['ours']:.1f} % of our runs, {middle['pdfium']:.1f} % of pdfium's and {middle['pdfminer.six']:.1f} % "
        "of pdfminer.six's"
    ) in text


def test_a_page_that_is_lost(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "a.pdf"))
    for word in ("first", "second"):
        for line in range(9):
            canvas.drawString(72, 700 - 14 * line, f"the {word} page has line {'abcdefghi'[line] * 4} of many")
        canvas.showPage()
    canvas.save()
    read = script.read_pdf

    def lossy(path: Path) -> object:
        found = read(path)
        for paragraph in found.paragraphs:
            paragraph.lines = [line for line in paragraph.lines if line.page == 1]
        return found

    monkeypatch.setattr(script, "read_pdf", lossy)
    assert script.measure(tmp_path / "a.pdf").poor_pages == [2]


def test_words(script: ModuleType) -> None:
    assert script.words_of("Jo\u02dcao's ca\ufb01\u00e9 2") == ["joao", "s", "cafie", "2"]
    assert script.joined("exam-\nple of well-\nKnown 19-\n20") == "example of wellKnown 19-\n20"
    assert script.bag("an x of the whole") == {"the": 1, "whole": 1}
