"""Every kind of source, in order; every kind of bad file, by name."""

import gzip
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, load_dataset

from longlora.data import read_documents
from longlora.errors import DataError

TEXTS = ["first", "second\nwith a line", "dritte, größer"]
ROWS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]


def texts_of(source: Any, **options: Any) -> list[str]:
    return [text for _, text in read_documents(source, **options)]


def write_folder(folder: Path, contents: dict[str, str | bytes]) -> str:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(folder)


def json_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


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


# --- what cannot be read ---


def test_bad_files_are_skipped_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = {f"bad{number}.bin": b"\xff\xfe text" for number in range(7)}
    folder = write_folder(
        tmp_path,
        {
            **bad,
            "nul.txt": b"a\0b",
            "late-nul.txt": b"a" * (1 << 20) + b"\0",
            "empty.txt": "",
            "blank.txt": " \n",
            "broken.json": "{",
            "broken.parquet": "PAR1 not really",
            "broken.jsonl.gz": "not gzip",
            "cut.jsonl.gz": gzip.compress(json_lines(ROWS).encode(), mtime=0)[:-9],
            "settings.json": '{"colour": "red"}',
            "good.txt": "good",
        },
    )
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    with caplog.at_level(logging.WARNING, logger="longlora"):
        texts = texts_of(folder)
    assert texts[-1] == "good"
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("skipped 18 files or rows: 9 not UTF-8 text: ")
    assert sum(f"bad{number}.bin" in message for number in range(7)) == 5
    assert "bad4.bin, …" in message
    for expected in (
        "2 empty: ",
        "1 not valid JSON: ",
        "1 not valid Parquet: ",
        "1 not valid gzip: ",
        "1 unreadable (Not a gzipped file",
        "2 unreadable (not a regular file): ",
        "1 with no column 'text' (columns: colour): ",
    ):
        assert expected in message


def test_nothing_is_said_when_all_is_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts_of(write_folder(tmp_path, {"a.txt": "a"}))
    assert not caplog.records


def test_unreadable_file_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    folder = write_folder(tmp_path, {"a.txt": "a", "secret.txt": "s"})
    original = Path.open

    def refuse(path: Path, *arguments: Any) -> Any:
        if path.name == "secret.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments)

    # Permission bits mean nothing to root, who may run these tests.
    monkeypatch.setattr(Path, "open", refuse)
    assert texts_of(folder) == ["a"]
    assert "1 unreadable (Permission denied): " in caplog.text


def test_bad_rows_are_skipped_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ['{"text": "one"}', '{"text": ', "[1]", "null", '{"text": 5}', '{"text": null}', '{"id": 1}']
    lines += ['{"text": "half \\ud800"}', '{"text": "two"}', '{"text": "cut o']
    write_folder(tmp_path, {"a.jsonl": "\n".join(lines)})
    assert texts_of(str(tmp_path / "a.jsonl")) == ["one", "two"]
    message = caplog.text
    assert "skipped 8 files or rows" in message
    assert f"4 not a JSON object: {tmp_path}/a.jsonl:2, {tmp_path}/a.jsonl:3" in message
    assert f"2 empty: {tmp_path}/a.jsonl:6, {tmp_path}/a.jsonl:7" in message
    assert f"1 with int instead of text in column 'text': {tmp_path}/a.jsonl:5" in message
    assert f"1 not UTF-8 text: {tmp_path}/a.jsonl:8" in message


def test_nothing_readable_names_the_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a.bin": b"\xff", "b.txt": ""})
    with pytest.raises(DataError, match=r"no readable text in .*1 not UTF-8 text: .*a\.bin; 1 empty: .*b\.txt"):
        texts_of(folder)


def test_table_without_rows(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.jsonl": ""})
    with pytest.raises(DataError, match=r"no readable text in .*a.jsonl: it holds no rows"):
        texts_of(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "saved"])
def test_missing_column_names_those_found(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    dataset = Dataset.from_list([{"id": 1, "body": "x"}])
    if kind == "saved":
        dataset.save_to_disk(path)
    elif kind == "parquet":
        dataset.to_parquet(path)
    else:
        path.write_text(json.dumps([{"id": 1, "body": "x"}]) if kind == "json" else '{"id": 1, "body": "x"}\n')
    with pytest.raises(DataError, match=r"no column 'text' \(columns: id, body\); set data.text_column"):
        texts_of((str(path), write_folder(tmp_path / "more", {"good.txt": "good"})))
    assert texts_of(str(path), text_column="body") == ["x"]


def test_folder_of_tables_without_the_column(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"a.jsonl": '{"body": "x"}', "b.jsonl": '{"body": "y"}'})
    with pytest.raises(DataError, match=r"2 with no column 'text' \(columns: body\)"):
        texts_of(folder)


def test_folder_without_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {".hidden": "x"})
    with pytest.raises(DataError, match="must hold at least one text file"):
        read_documents(folder)


def test_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path, {"a.txt": "a"})

    def refuse(path: str) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be listed \(Permission denied\)"):
        read_documents(folder)


def test_glob_without_matches(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="must match at least one file"):
        read_documents(f"{tmp_path}/*")


def test_no_source_at_all() -> None:
    with pytest.raises(DataError, match="at least one data source"):
        read_documents(())


@pytest.mark.parametrize("name", ["", " ", "notes.txt", "owner/rows.jsonl", "/no/such/folder", "a/b/c", "../books"])
def test_what_is_no_path_and_no_hub_name(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"does not exist; data.source must be"):
        read_documents(name)


# --- the hub ---


def serve(monkeypatch: pytest.MonkeyPatch, rows: Iterator[dict[str, Any]] | Exception) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, *, split: str, streaming: bool) -> Iterator[dict[str, Any]]:
        calls.append((name, split, streaming))
        if isinstance(rows, Exception):
            raise rows
        return rows

    monkeypatch.setattr("longlora.data.readers.load_dataset", load_dataset)
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
    monkeypatch.setattr("longlora.data.readers.load_dataset", lambda name, **options: load_dataset(clone, **options))
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


# --- identity ---


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
