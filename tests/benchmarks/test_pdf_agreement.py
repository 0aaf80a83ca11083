"""The script that measures what comes back from PDFs measures it, and reports where its numbers come from."""

import importlib
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_pdf_agreement")


def test_a_row(script: ModuleType, tmp_path: Path) -> None:
    row = script.measure("reportlab", partial(script.print_article, columns=2), 1, tmp_path)
    assert row.documents == 1 and row.pages >= 2 and row.least > 0.98
    assert row.notes == "3 of 3"
    assert 0.5 < row.plain["pdfium alone"] < row.least  # it keeps heads, notes, the table and the references
    text = script.report([row], script._report.provenance(torch.device("cpu")))
    assert row.cells in text.splitlines() and "Agreement is 2 × matches" in text and "commit" in text


def test_lines_written_across_columns_are_read_column_by_column(script: ModuleType, tmp_path: Path) -> None:
    row = script.measure("reportlab, across", partial(script.print_article, across=True), 1, tmp_path)
    assert row.least > 0.98 and row.plain["pdfium alone"] < 0.8


def test_words_out_of_order_cost(script: ModuleType) -> None:
    words = [f"w{index}" for index in range(100)]
    assert script.agreement(words, words) == 1
    assert script.agreement(words, words[50:] + words[:50]) == 0.5
    assert script.agreement(words, words[:50]) == pytest.approx(2 * 50 / 150)
