"""Ids and special tokens; a cache that is used, dropped and written as it should be."""

import json
import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import Dataset
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from longlora.data import document_rows, table_cache
from longlora.data.document_rows import tokenize_documents
from longlora.data.sources import DocumentSource, read_documents
from longlora.errors import DataError

BOS, EOS = 0, 1
TEXTS = {"a.txt": "Call me Ishmael.", "b.txt": "It is a truth universally acknowledged. " * 20, "c.txt": "größer"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def tokenized_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that reaches the tokenizer."""
    seen: list[str] = []
    original = document_rows._tokenize

    def record(texts: list[str], tokenizer: Any) -> list[list[int]]:
        seen.extend(texts)
        return original(texts, tokenizer)

    monkeypatch.setattr(document_rows, "_tokenize", record)
    return seen


def tokenize(folder: Path, tokenizer: Any, cache_dir: Path) -> Dataset:
    return tokenize_documents(read_documents(str(folder)), tokenizer, cache_dir=cache_dir, show_progress=False)


def plain_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def test_ids_names_and_types(folder: Path, tokenizer: PreTrainedTokenizerFast, cache_dir: Path) -> None:
    documents = tokenize(folder, tokenizer, cache_dir)
    assert documents["name"][:] == [str(folder / name) for name in TEXTS]
    assert documents["input_ids"][:] == [[BOS, *plain_ids(tokenizer, text), EOS] for text in TEXTS.values()]
    assert documents.data.schema.field("input_ids").type == pyarrow.list_(pyarrow.int32())
    assert documents.column_names == ["name", "input_ids"]


@pytest.mark.parametrize(
    ("template", "eos_token", "before", "after"),
    [
        ("<s> $A", "</s>", [BOS], [EOS]),
        ("$A", "</s>", [], [EOS]),
        ("<s> $A </s>", "</s>", [BOS], [EOS]),
        ("<s> $A", None, [BOS], []),
    ],
)
def test_special_tokens_are_the_tokenizers_own_and_one_eos(
    folder: Path,
    cache_dir: Path,
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    template: str,
    eos_token: str | None,
    before: list[int],
    after: list[int],
) -> None:
    tokenizer = make_tokenizer(template=template, eos_token=eos_token)
    documents = tokenize(folder, tokenizer, cache_dir)
    expected = [[*before, *plain_ids(tokenizer, text), *after] for text in TEXTS.values()]
    assert documents["input_ids"][:] == expected


def test_tokenizer_written_in_python(folder: Path, cache_dir: Path, tokenized_texts: list[str]) -> None:
    documents = tokenize(folder, ByT5Tokenizer(), cache_dir)
    assert documents[0]["input_ids"] == [byte + 3 for byte in TEXTS["a.txt"].encode()] + [1]
    tokenize(folder, ByT5Tokenizer(), cache_dir)
    assert len(tokenized_texts) == len(TEXTS)
    tokenize(folder, ByT5Tokenizer(extra_ids=7), cache_dir)
    assert len(tokenized_texts) == 2 * len(TEXTS)


def test_long_documents_bring_no_warning(
    folder: Path, tokenizer: PreTrainedTokenizerFast, cache_dir: Path, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        tokenize(folder, tokenizer, cache_dir)
        assert not [record for record in caplog.records if record.name.startswith("transformers")]
        # The warning is there to be had.
        tokenizer(TEXTS["b.txt"], verbose=True)
        assert "sequence length is longer" in caplog.text
    finally:
        transformers_logger.removeHandler(caplog.handler)


def test_batches_keep_the_order(
    folder: Path, tokenizer: PreTrainedTokenizerFast, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenize(folder, tokenizer, cache_dir / "whole")
    monkeypatch.setattr(document_rows, "_BATCH_CHARACTERS", 20)
    cut = tokenize(folder, tokenizer, cache_dir / "cut")
    assert len(cut.data["input_ids"].chunks) > len(whole.data["input_ids"].chunks) == 1
    assert cut.to_dict() == whole.to_dict()


def test_progress_counts_documents_and_tokens(
    folder: Path, tokenizer: PreTrainedTokenizerFast, cache_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    documents = tokenize_documents(read_documents(str(folder)), tokenizer, cache_dir=cache_dir)
    shown = capfd.readouterr().err
    assert "3/3" in shown
    assert f"{sum(map(len, documents['input_ids'])):,} tokens" in shown
    tokenize(folder, tokenizer, cache_dir / "silent")
    assert capfd.readouterr().err == ""


# --- the cache ---


def test_second_call_does_not_tokenize(
    folder: Path,
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    cache_dir: Path,
    tokenized_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = make_tokenizer()
    first = tokenize(folder, tokenizer, cache_dir)
    assert tokenized_texts == list(TEXTS.values())

    def refuse(*_: Any, **__: Any) -> Iterator[Any]:
        raise AssertionError("read again")

    monkeypatch.setattr("longlora.data.sources._read_parts", refuse)
    # What a tokenizer was used for in between is no other tokenizer.
    tokenizer(["a", "b c"], padding="max_length", truncation=True, max_length=4)
    for same in (tokenizer, make_tokenizer()):
        again = tokenize(folder, same, cache_dir)
        assert again.to_dict() == first.to_dict()
        assert again.cache_files == first.cache_files
    assert len(tokenized_texts) == len(TEXTS)


def test_changed_file_is_tokenized_again(
    folder: Path, tokenizer: PreTrainedTokenizerFast, cache_dir: Path, tokenized_texts: list[str]
) -> None:
    tokenize(folder, tokenizer, cache_dir)
    (folder / "a.txt").write_text("Call me Queequeg!")
    documents = tokenize(folder, tokenizer, cache_dir)
    assert tokenized_texts[len(TEXTS) :] == ["Call me Queequeg!", TEXTS["b.txt"], TEXTS["c.txt"]]
    assert documents[0]["input_ids"] == [BOS, *plain_ids(tokenizer, "Call me Queequeg!"), EOS]


@pytest.mark.parametrize(
    "change", [{"vocab_size": 290}, {"template": "$A"}, {"eos_token": None}, {"eos_token": "<pad>"}]
)
def test_another_tokenizer_tokenizes_again(
    folder: Path,
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
    cache_dir: Path,
    tokenized_texts: list[str],
    change: dict[str, Any],
) -> None:
    tokenize(folder, make_tokenizer(), cache_dir)
    tokenize(folder, make_tokenizer(**change), cache_dir)
    assert len(tokenized_texts) == 2 * len(TEXTS)


def test_another_format_version_tokenizes_again(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path,
    tokenized_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenize(folder, tokenizer, cache_dir)
    monkeypatch.setattr(document_rows, "FORMAT_VERSION", -1)
    tokenize(folder, tokenizer, cache_dir)
    assert len(tokenized_texts) == 2 * len(TEXTS)


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_default_cache_folder(
    folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if variable == "XDG_CACHE_HOME":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    documents = tokenize_documents(read_documents(str(folder)), tokenizer, show_progress=False)
    expected = tmp_path / "xdg" if variable == "XDG_CACHE_HOME" else tmp_path / "home" / ".cache"
    assert Path(documents.cache_files[0]["filename"]).is_relative_to(expected / "longlora")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_interrupted_write_leaves_nothing(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    interruption: type[BaseException],
) -> None:
    source = read_documents(str(folder))

    def stop_after_two() -> Iterator[tuple[str, str]]:
        documents = iter(source)
        yield next(documents)
        yield next(documents)
        raise interruption

    broken = DocumentSource(identity=source.identity, num_documents=None, read=stop_after_two)
    monkeypatch.setattr(document_rows, "_BATCH_DOCUMENTS", 1)
    with pytest.raises(interruption):
        tokenize_documents(broken, tokenizer, cache_dir=cache_dir, show_progress=False)
    assert [path for path in (cache_dir / "tokenized").iterdir() if path.suffix != ".lock"] == []
    assert len(tokenize(folder, tokenizer, cache_dir)) == len(TEXTS)


def test_remains_of_a_killed_process_are_not_read(
    folder: Path, tokenizer: PreTrainedTokenizerFast, cache_dir: Path
) -> None:
    first = tokenize(folder, tokenizer, cache_dir).to_dict()
    (done,) = (cache_dir / "tokenized").glob("*/")
    partial = done.rename(done.with_name(f".{done.name}.partial-1"))
    (partial / "documents.arrow").write_bytes(b"half")
    assert tokenize(folder, tokenizer, cache_dir).to_dict() == first
    assert list((cache_dir / "tokenized").glob("*/")) == [done]


@pytest.mark.parametrize("damage", ["cut short", "not arrow", "lost", "fewer documents", "no summary"])
def test_damaged_cache_is_written_anew(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path,
    tokenized_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    monkeypatch.setattr(document_rows, "_BATCH_DOCUMENTS", 1)
    first = tokenize(folder, tokenizer, cache_dir).to_dict()
    (done,) = (cache_dir / "tokenized").glob("*/")
    data, summary = done / "documents.arrow", done / "summary.json"
    content = data.read_bytes()
    if damage == "cut short":
        data.write_bytes(content[: len(content) // 2])
    elif damage == "not arrow":
        data.write_bytes(b"not arrow")
    elif damage == "lost":
        data.unlink()
    elif damage == "fewer documents":
        summary.write_text(json.dumps({"num_rows": len(TEXTS) + 1}))
    else:
        summary.write_text("")
    assert tokenize(folder, tokenizer, cache_dir).to_dict() == first
    assert len(tokenized_texts) == 2 * len(TEXTS)


def test_two_at_once_tokenize_once(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: Path,
    tokenized_texts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both_found_nothing = threading.Barrier(2, timeout=60)
    original = table_cache._open_cache
    opened = threading.local()

    def open_cache(path: Path) -> Any:
        documents = original(path)
        if not hasattr(opened, "once"):
            opened.once = True
            both_found_nothing.wait()
        return documents

    monkeypatch.setattr(table_cache, "_open_cache", open_cache)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: tokenize(folder, tokenizer, cache_dir), range(2))
    assert first.to_dict() == second.to_dict()
    assert sorted(tokenized_texts) == sorted(TEXTS.values())


def _tokenize_in_process(folder: Path, tokenizer: Any, cache_dir: Path, barrier: Any, answers: Any) -> None:
    barrier.wait(timeout=60)
    documents = tokenize(folder, tokenizer, cache_dir)
    answers.put(documents.to_dict())


@pytest.mark.slow
def test_two_processes_at_once(folder: Path, tokenizer: PreTrainedTokenizerFast, cache_dir: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    arguments = (folder, tokenizer, cache_dir, barrier, answers)
    processes = [context.Process(target=_tokenize_in_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    results = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert results[0] == results[1] == tokenize(folder, tokenizer, cache_dir).to_dict()
    assert len(list((cache_dir / "tokenized").glob("*/"))) == 1


def test_cache_that_cannot_be_written(folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written to .*; set data\.cache_dir"):
        tokenize(folder, tokenizer, tmp_path / "file")


def test_error_of_the_source_leaves_no_cache(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, cache_dir: Path
) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="no readable text"):
        tokenize(tmp_path / "bad.txt", tokenizer, cache_dir)
    assert not list(cache_dir.rglob("*.arrow"))
