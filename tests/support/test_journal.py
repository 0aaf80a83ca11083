"""A journal resumes what was killed, belongs to one set of settings, and says what is wrong with it."""

import json
from pathlib import Path

import pytest

from longlora.errors import ConfigError, DataError
from longlora.support.journal import Journal, read_journal, read_json_lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work" / "journal.jsonl"


def test_lines_are_there_at_once_and_come_back(path: Path) -> None:
    with Journal(path, {"length": 8}) as journal:
        journal.append({"answer": "á"})
        assert read_journal(path, {"length": 8}) == [{"answer": "á"}]
        journal.append({"answer": "b"}, is_synced=True)
    with Journal(path, {"length": 8}) as journal:
        assert journal.entries == [{"answer": "á"}, {"answer": "b"}]
        journal.append({"answer": "c"})
    assert [line["answer"] for line in read_journal(path, {"length": 8})] == ["á", "b", "c"]


def test_a_line_that_was_torn_is_cut_off(path: Path) -> None:
    with Journal(path, {}) as journal:
        journal.append({"n": 1})
        journal.append({"n": 2, "text": "x" * 200_000})
    path.write_bytes(path.read_bytes()[:-5])
    with Journal(path, {}) as journal:
        assert journal.entries == [{"n": 1}]
        journal.append({"n": 3})
    assert read_journal(path, {}) == [{"n": 1}, {"n": 3}]


def test_other_settings_are_refused_by_name(path: Path) -> None:
    with Journal(path, {"length": 8, "seed": 0}) as journal:
        journal.append({})
    with pytest.raises(ConfigError, match=r"length 8 there and 16 now.*choose another path"):
        Journal(path, {"length": 16, "seed": 0})
    with Journal(path, {"length": 8, "seed": 0}) as journal:  # the failure has left no lock
        assert journal.entries == [{}]


def test_a_header_alone_binds_nobody(path: Path) -> None:
    with Journal(path, {"length": 8}):
        pass
    with Journal(path, {"length": 16}) as journal:
        journal.append({})
    assert json.loads(path.read_text().splitlines()[0]) == {"settings": {"length": 16}}


def test_one_process_at_a_time(path: Path) -> None:
    with Journal(path, {}), pytest.raises(ConfigError, match="another process is using"):
        Journal(path, {})


@pytest.mark.parametrize("line", ["{", "[1", "nonsense"])
def test_a_damaged_line_is_named(path: Path, line: str) -> None:
    with Journal(path, {}) as journal:
        journal.append({"n": 1})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"line 3 .*delete that line"):
        Journal(path, {})


def test_what_cannot_be_parsed_is_named(path: Path) -> None:
    with Journal(path, {}) as journal:
        journal.append({"n": 1})
        journal.append({"m": 2})
    with pytest.raises(DataError, match=r"line 3 \(KeyError: 'n'\)"):
        read_journal(path, {}, lambda value: value["n"])


def test_a_file_without_a_header_is_no_journal(path: Path) -> None:
    path.parent.mkdir()
    for text in ('{"n": 1}\n', '{"n": 1}\n{"n": 2}\n'):
        path.write_text(text)
        with pytest.raises(DataError, match="is not a journal"):
            Journal(path, {})
        assert path.read_text() == text
    assert read_json_lines(path, lambda value: value["n"]) == [1, 2]
