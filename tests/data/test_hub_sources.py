"""Data sets on the hub: streamed, and refused in words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from tests.data.folders import ROWS, TEXTS, json_lines, texts_of, write_folder

from longlora.data.sources import read_documents
from longlora.errors import DataError


def serve(monkeypatch: pytest.MonkeyPatch, rows: Iterator[dict[str, Any]] | Exception) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, *, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
        calls.append((name, split, streaming))
        if isinstance(rows, Exception):
            raise rows
        return rows

    monkeypatch.setattr("longlora.data.row_readers.load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("name", ["corpus", "owner/corpus", "owner/corpus-v1.2"])
def test_hub_is_streamed_no_further_than_asked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def endless() -> Iterator[dict[str, Any]]:
        for number in range(1000):
            assert number < 10, "read on after max_documents"
            yield {"text": f"text {number}"}

    calls = serve(monkeypatch, endless())
    source = read_documents(name, split="validation", max_documents=2)
    assert not calls, "a cached data set must not need the hub"
    assert list(source) == [(f"{name}:1", "text 0"), (f"{name}:2", "text 1")]
    assert calls == [(name, "validation", True)]


def test_hub_through_datasets_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A clone of a hub data set stands in for the hub; the rest is `datasets`."""
    clone = write_folder(tmp_path, {"data/train.jsonl": json_lines(ROWS)})
    monkeypatch.setattr(
        "longlora.data.row_readers.load_dataset", lambda name, **options: load_dataset(clone, **options)
    )
    assert texts_of("owner/corpus", max_documents=2) == TEXTS[:2]
    with pytest.raises(DataError, match="cannot be read as a hub data set with split='test': Bad split: test"):
        texts_of("owner/corpus", split="test")


def test_hub_missing_column(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, iter([{"content": "x"}]))
    with pytest.raises(DataError, match=r"owner/corpus has no column 'text' \(columns: content\)"):
        texts_of("owner/corpus")


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"'owner/corpus' does not exist as a path, and the hub could not be reached"):
        texts_of("owner/corpus")


def test_hub_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, ValueError("Config name is missing.\nPlease pick one"))
    with pytest.raises(DataError, match=r"split='train': Config name is missing\.$"):
        texts_of("owner/corpus")


def test_hub_lost_halfway(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"text": "one"}
        raise ConnectionError

    serve(monkeypatch, rows())
    documents = iter(read_documents("owner/corpus"))
    with pytest.raises(DataError, match=r"could not be reached .*\(ConnectionError\)"):
        list(documents)
