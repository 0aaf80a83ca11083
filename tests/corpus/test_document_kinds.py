"""Novels are read as books, printed articles as papers."""

from pathlib import Path
from types import SimpleNamespace

from longlora.corpus.extract import ExtractSettings, extract


def test_twelve_articles_are_papers(printing: SimpleNamespace, tmp_path: Path, seed: int) -> None:
    for number in range(12):
        article = printing.make_article(seed + number, num_sections=1)
        printing.print_article(tmp_path / "article.pdf", article, columns=1 + number % 2)
        assert extract(tmp_path / "article.pdf", ExtractSettings()).document_kind == "paper"


def test_every_novel_is_a_book(shared_data: Path) -> None:
    kinds = {path.name: extract(path, ExtractSettings()).document_kind for path in shared_data.glob("pg19/*/*.txt")}
    assert len(kinds) >= 12 and set(kinds.values()) == {"book"}, kinds
