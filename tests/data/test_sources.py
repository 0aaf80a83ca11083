"""Every kind of source on this machine, in order, and what it is known by."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict
from tests.data.folders import ROWS, TEXTS, json_lines, texts_of, write_folder

from longlora.data.sources import read_documents
from longlora.errors import DataError


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.tex", "a.py", "a.of-no-known-suffix", "README"])
def test_text_file_of_any_suffix_is_one_document(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, {name: "größer\n"})
    assert list(read_documents(str(tmp_path / name))) == [(str(tmp_path / name), "größer\n")]


def test_text_reads_the_same_from_every_system(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.txt": b"\xef\xbb\xbfone\r\ntwo\r\n"})
    assert texts_of(str(tmp_path / "a.txt")) == ["one\ntwo\n"]


def test_folder_is_read_in_the_order_of_paths_without_hidden_files(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path, {"b.txt": "3", "a/z.txt": "2", "a/b/c.txt": "1", ".hidden": "no", ".git/config": "no", "a/.x": "no"}
    )
    assert texts_of(folder) == ["1", "2", "3"]
    assert read_documents(folder).num_documents == 3


def test_hidden_folder_can_be_named(tmp_path: Path) -> None:
    assert texts_of(write_folder(tmp_path / ".texts", {"a.txt": "1"})) == ["1"]


def test_folder_mixes_texts_and_tables(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a.jsonl": json_lines(ROWS[:2]), "b.txt": "3"})
    assert texts_of(folder) == [*TEXTS[:2], "3"]
    assert read_documents(folder).num_documents is None


def test_glob(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"b.txt": "2", "a.txt": "1", "c.md": "no", "sub/d.txt": "3"})
    assert texts_of(f"{folder}/*.txt") == ["1", "2"]
    assert texts_of(f"{folder}/**/*.txt") == ["1", "2", "3"]


def test_existing_path_wins_over_glob(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a[1].txt": "brackets", "a1.txt": "no"})
    assert texts_of(str(tmp_path / "a[1].txt")) == ["brackets"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", json_lines(ROWS)),
        ("a.jsonl", json_lines(ROWS).replace("\n", "\n\n")),
        ("a.json", json_lines(ROWS)),
        ("a.json", json.dumps(ROWS)),
        ("a.json", json.dumps(ROWS, indent=1)),
        ("a.jsonl.gz", gzip.compress(json_lines(ROWS).encode(), mtime=0)),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
    ],
)
def test_json_in_each_of_its_shapes(tmp_path: Path, name: str, content: str | bytes) -> None:
    write_folder(tmp_path, {name: content})
    assert texts_of(str(tmp_path / name)) == TEXTS


def test_json_of_one_object_is_one_document(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.json": json.dumps(ROWS[0], indent=1)})
    assert texts_of(str(tmp_path / "a.json")) == TEXTS[:1]


def test_row_names_give_the_line(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.jsonl": "\n" + json_lines(ROWS[:1])})
    assert [name for name, _ in read_documents(str(tmp_path / "a.jsonl"))] == [f"{tmp_path}/a.jsonl:2"]


@pytest.mark.parametrize("text_type", [pyarrow.string(), pyarrow.large_string()])
def test_parquet(tmp_path: Path, text_type: pyarrow.DataType) -> None:
    many = [f"text {number}" for number in range(150)]
    table = pyarrow.table({"id": range(150), "body": pyarrow.array(many, text_type)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    documents = list(read_documents(str(tmp_path / "a.parquet"), text_column="body"))
    assert [text for _, text in documents] == many
    assert documents[-1][0].endswith("a.parquet:150")


def test_saved_dataset_and_its_splits(tmp_path: Path) -> None:
    train, test = Dataset.from_list(ROWS), Dataset.from_list(ROWS[:1])
    train.save_to_disk(tmp_path / "plain")
    DatasetDict(train=train, test=test).save_to_disk(tmp_path / "split")
    assert texts_of(str(tmp_path / "plain")) == TEXTS
    assert texts_of(str(tmp_path / "split")) == TEXTS
    assert texts_of(str(tmp_path / "split"), split="test") == TEXTS[:1]
    with pytest.raises(DataError, match=r"no split 'dev'.*train, test"):
        texts_of(str(tmp_path / "split"), split="dev")


def test_damaged_saved_dataset(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match=r"no readable text in .*saved: 1 unreadable"):
        texts_of(str(tmp_path / "saved"))


def test_several_sources_in_the_order_given(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "texts", {"b.txt": "b", "a.txt": "a"})
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    sources = (str(tmp_path / "saved"), f"{folder}/b.txt", folder)
    assert texts_of(sources) == [*TEXTS, "b", "a", "b"]
    assert texts_of(list(sources)) == texts_of(sources)


@pytest.mark.parametrize("max_documents", [1, 4, 9])
def test_max_documents_counts_over_all_sources(tmp_path: Path, max_documents: int) -> None:
    write_folder(tmp_path, {"a.jsonl": json_lines(ROWS), "b.txt": "b", "c.txt": "c"})
    everything = [*TEXTS, "b", "c"]
    assert texts_of(str(tmp_path), max_documents=max_documents) == everything[:max_documents]


def test_source_can_be_read_twice(tmp_path: Path) -> None:
    source = read_documents(write_folder(tmp_path, {"a.txt": "a", "b.txt": "b"}))
    assert list(source) == list(source) != []


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", write_folder(tmp_path, {"a.txt": "at home"}))
    assert texts_of("~/a.txt") == ["at home"]


def test_identity_follows_what_decides_the_documents(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a.txt": "a", "b.txt": "b"})
    before = read_documents(folder).identity
    assert read_documents(folder).identity == before
    others = [
        read_documents(folder, text_column="body").identity,
        read_documents(folder, split="test").identity,
        read_documents(folder, max_documents=1).identity,
        read_documents((f"{folder}/b.txt", f"{folder}/a.txt")).identity,
        read_documents("owner/corpus").identity,
        read_documents("owner/corpus", split="test").identity,
    ]
    status = (tmp_path / "a.txt").stat()
    (tmp_path / "a.txt").write_text("A")
    os.utime(tmp_path / "a.txt", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    others.append(read_documents(folder).identity)
    os.utime(tmp_path / "a.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert read_documents(folder).identity == before
    (tmp_path / "a.txt").write_text("longer")
    os.utime(tmp_path / "a.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    others.append(read_documents(folder).identity)
    (tmp_path / "c.txt").write_text("c")
    others.append(read_documents(folder).identity)
    assert len({before, *others}) == 1 + len(others)


def test_identity_of_a_saved_dataset_changes_with_its_rows(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    before = read_documents(str(tmp_path / "saved")).identity
    Dataset.from_list(ROWS[:2]).save_to_disk(tmp_path / "saved")
    assert read_documents(str(tmp_path / "saved")).identity != before


def test_relative_and_absolute_paths_are_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, {"a.txt": "a"})
    monkeypatch.chdir(tmp_path)
    assert read_documents("a.txt").identity == read_documents(str(tmp_path / "a.txt")).identity
