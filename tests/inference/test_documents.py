from pathlib import Path

import pytest

from longlora.cli.chat import read_document
from longlora.errors import DataError
from longlora.inference.documents import Document, cut_middle, join_documents


def test_texts_are_read_and_joined_with_their_names(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("\ufeffOne.\n", encoding="utf-8")
    (tmp_path / "two.md").write_text("# Zwei\n\nÄ.\n", encoding="utf-8")
    paths = [tmp_path / "one.txt", tmp_path / "two.md"]
    assert join_documents(paths[:1], read_document) == ("one.txt", "One.")
    assert join_documents(paths, read_document) == ("one.txt, two.md", "one.txt\n\nOne.\n\n\ntwo.md\n\n# Zwei\n\nÄ.")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"\xff\xfe\x00", "not UTF-8 text"), (b" \n", "without text"), (None, "cannot be read: .*No such file")],
)
def test_files_that_are_no_texts_are_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "file.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read_document(path)


@pytest.mark.parametrize("limit", [20, 57, 100])
def test_the_middle_goes_and_the_ends_stay(limit: int) -> None:
    text = "".join(f"{number:04d} " for number in range(500))

    def count(part: str) -> int:
        return len(part.split())

    cut = cut_middle(Document(name="numbers", text=text, num_tokens=500), count, limit=limit)
    numbers = [int(word) for word in cut.text.replace("[…]", "").split()]
    assert count(cut.text) <= limit
    assert cut.num_cut == 500 - count(cut.text)
    assert numbers[0] == 0 and numbers[-1] == 499
    assert abs(numbers.index(max(numbers[: len(numbers) // 2])) - len(numbers) / 2) < 3  # as much before as after


def test_what_fits_stays_as_it_is_and_what_cannot_fit_is_told() -> None:
    document = Document(name="numbers", text="one two", num_tokens=2)
    assert cut_middle(document, len, limit=2) is document
    with pytest.raises(DataError, match="only -3 tokens of context are free, too few for any part of numbers"):
        cut_middle(document, len, limit=-3)
