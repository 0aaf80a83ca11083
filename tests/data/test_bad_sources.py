"""Every kind of bad file, by name, and sources that are none."""

import gzip
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tests.data.folders import ROWS, json_lines, texts_of, write_folder

from longlora.data.sources import read_documents
from longlora.errors import DataError


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
