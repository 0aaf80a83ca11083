"""Rows against the plainest packing there is: one list, cut every `context_length` tokens."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerFast
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from longlora.data import document_rows
from longlora.data.document_rows import pack_rows, tokenize_documents
from longlora.data.sources import read_documents
from longlora.errors import DataError

SHARED_TEXTS = Path(__file__).parents[2] / "../shared/data/proofpile/validation"


def random_documents(seed: int, *, longest: int = 40, count: int = 60) -> list[list[int]]:
    """Documents of 0 to `longest` tokens; every token is another number, so that none can be mistaken."""
    lengths = np.random.default_rng(seed).integers(0, longest + 1, count)
    tokens = iter(range(int(lengths.sum())))
    return [[next(tokens) for _ in range(length)] for length in lengths]


def pack_naively(documents: list[list[int]], context_length: int) -> list[dict[str, list[int]]]:
    tokens = [(token, owner) for owner, document in enumerate(documents) for token in document]
    rows = []
    for start in range(0, len(tokens) - context_length + 1, context_length):
        row = tokens[start : start + context_length]
        owners = [owner for _, owner in row]
        pieces = [owners.count(owner) for owner in dict.fromkeys(owners)]
        rows.append({"input_ids": [token for token, _ in row], "seq_lengths": pieces})
    return rows


def as_dataset(documents: list[list[int]], chunk_sizes: tuple[int, ...] = ()) -> Dataset:
    chunks, start = [], 0
    for size in (*chunk_sizes, len(documents)):
        chunks.append(
            Dataset.from_dict(
                {"name": ["x"] * len(documents[start : start + size]), "input_ids": documents[start : start + size]}
            )
        )
        start += size
    return concatenate_datasets([chunk for chunk in chunks if len(chunk)])


@pytest.mark.parametrize("context_length", [1, 7, 16, 501])
@pytest.mark.parametrize("longest", [3, 60])
@pytest.mark.parametrize("batch_documents", [1, 5, 64])
def test_rows_equal_naive_packing(
    context_length: int, longest: int, batch_documents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_rows, "_CUT_DOCUMENTS", batch_documents)
    documents = random_documents(context_length * longest, longest=longest)
    num_tokens = sum(map(len, documents))
    if num_tokens < context_length:
        documents += [list(range(num_tokens, num_tokens + context_length))]
    rows = pack_rows(as_dataset(documents, (1, 13)), context_length=context_length).to_list()
    assert rows == pack_naively(documents, context_length)
    # Said on its own, should the reference be as wrong as the packing.
    packed = [token for row in rows for token in row["input_ids"]]
    assert packed == list(range(len(packed)))
    assert 0 <= sum(map(len, documents)) - len(packed) < context_length
    assert all(len(row["input_ids"]) == sum(row["seq_lengths"]) == context_length for row in rows)
    assert all(length > 0 for row in rows for length in row["seq_lengths"])


def test_boundary_between_documents_and_continuation() -> None:
    rows = pack_rows(as_dataset([[1, 2, 3], [4, 5, 6, 7, 8], [9]]), context_length=4).to_list()
    assert rows == [
        {"input_ids": [1, 2, 3, 4], "seq_lengths": [3, 1]},
        {"input_ids": [5, 6, 7, 8], "seq_lengths": [4]},
    ]


def test_cross_document_attention_sees_one_piece() -> None:
    documents = as_dataset(random_documents(0))
    apart = pack_rows(documents, context_length=32)
    joined = pack_rows(documents, context_length=32, cross_document_attention=True)
    assert joined["input_ids"][:] == apart["input_ids"][:]
    assert joined["seq_lengths"][:] == [[32]] * len(joined)
    assert max(map(len, apart["seq_lengths"])) > 1


def test_types() -> None:
    rows = pack_rows(as_dataset(random_documents(0)), context_length=8)
    assert rows.column_names == ["input_ids", "seq_lengths"]
    for column in rows.column_names:
        assert rows.data.schema.field(column).type == pyarrow.list_(pyarrow.int32())
    assert isinstance(rows[0]["input_ids"], list)


def test_order_is_that_of_the_rows_not_of_the_file() -> None:
    documents = random_documents(1)
    order = np.random.default_rng(1).permutation(len(documents))[:30]
    rows = pack_rows(as_dataset(documents).select(order), context_length=8).to_list()
    assert rows == pack_naively([documents[index] for index in order], 8)


def test_remainder_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="longlora"):
        pack_rows(as_dataset([[0] * 10, [1] * 13]), context_length=10)
    assert "packed 23 tokens into 2 rows of 10; 3 at the end are left out" in caplog.text


def test_exactly_one_row() -> None:
    assert pack_rows(as_dataset([[1, 2], [3]]), context_length=3).to_list() == [
        {"input_ids": [1, 2, 3], "seq_lengths": [2, 1]}
    ]


@pytest.mark.parametrize("documents", [[[1, 2], [3]], [[]]])
def test_too_few_tokens(documents: list[list[int]]) -> None:
    found = sum(map(len, documents))
    with pytest.raises(DataError, match=rf"context_length=4 tokens, found {found} tokens; add documents or lower"):
        pack_rows(as_dataset(documents), context_length=4)


def test_rows_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Dataset, "map", full)
    with pytest.raises(DataError, match=r"cannot be written .*\(No space left on device\); set data\.cache_dir"):
        pack_rows(as_dataset([[1, 2]]), context_length=1)


def test_trl_collator_turns_pieces_into_cut_points() -> None:
    rows = pack_rows(as_dataset([[1, 2, 3], [4, 5, 6, 7, 8]]), context_length=4)
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 2, 3]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 4, 8]


@pytest.fixture
def documents_on_disk(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, cache_dir: Path) -> Any:
    """Tokenized documents, opened anew by each call."""
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"Call me number {number}. " * (number + 1))

    def open_documents() -> Dataset:
        source = read_documents(f"{tmp_path}/*.txt")
        return tokenize_documents(source, tokenizer, cache_dir=cache_dir, show_progress=False)

    return open_documents


def test_rows_are_written_once_beside_the_documents(documents_on_disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pack_rows(documents_on_disk(), context_length=16)
    (file,) = (Path(entry["filename"]) for entry in rows.cache_files)
    assert file.parent.parent == Path(documents_on_disk().cache_files[0]["filename"]).parent
    written = file.stat().st_mtime_ns
    again = pack_rows(documents_on_disk(), context_length=16)
    assert again.cache_files == rows.cache_files
    assert file.stat().st_mtime_ns == written
    assert again.to_list() == rows.to_list() == pack_naively(documents_on_disk()["input_ids"][:], 16)


@pytest.mark.parametrize(("context_length", "cross_document_attention"), [(8, False), (16, True)])
def test_other_rows_are_not_mistaken_for_these(
    documents_on_disk: Any, context_length: int, cross_document_attention: bool
) -> None:
    rows = pack_rows(documents_on_disk(), context_length=16)
    other = pack_rows(
        documents_on_disk(), context_length=context_length, cross_document_attention=cross_document_attention
    )
    assert other.cache_files != rows.cache_files
    assert other.to_list() != rows.to_list()


def test_real_texts(make_tokenizer: Any, cache_dir: Path) -> None:
    if not SHARED_TEXTS.is_dir():
        pytest.skip(f"the shared texts are not here: {SHARED_TEXTS}")
    source = read_documents(str(SHARED_TEXTS))
    tokenizer = make_tokenizer()
    documents = tokenize_documents(source, tokenizer, cache_dir=cache_dir, show_progress=False)
    rows = pack_rows(documents, context_length=4096)
    lengths = [len(ids) for ids in documents["input_ids"]]
    assert len(rows) == sum(lengths) // 4096
    # Every boundary of the texts, and no other, is a boundary of pieces or of rows.
    ends = np.cumsum([length for row in rows["seq_lengths"] for length in row])
    expected = sorted({*np.arange(4096, sum(lengths), 4096), *np.cumsum(lengths)[:-1]})
    assert ends.tolist() == [int(end) for end in expected if end <= ends[-1]]
    first_text = next(iter(source))[1]
    start = tokenizer.decode(rows[0]["input_ids"], skip_special_tokens=True)
    assert first_text.startswith(start)
    assert len(start) > 4096
