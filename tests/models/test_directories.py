"""Directories are whole or absent."""

import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from longlora.errors import CheckpointError
from longlora.models.directories import Extension, read_extension, save_tokenizer, write_extension
from longlora.support.files import whole_directory, write_atomically

EXTENSION = Extension(
    base_model="m", base_context=64, context_length=256, rope_parameters={"rope_type": "linear", "factor": 4.0}
)


def test_the_extension_reads_back(tmp_path: Path) -> None:
    write_extension(tmp_path, EXTENSION)
    assert read_extension(tmp_path) == EXTENSION


def test_an_adapter_of_another_maker_has_no_extension(tmp_path: Path) -> None:
    assert read_extension(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"base_model": "m"})])
def test_a_damaged_extension(tmp_path: Path, text: str) -> None:
    (tmp_path / "longlora.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_extension(tmp_path)


def test_a_directory_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with whole_directory(target) as directory:
        (directory / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_all_of_a_directory_is_on_the_disk_before_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, flushed = tmp_path / "target", []

    def fsync(descriptor: int) -> None:
        flushed.append((os.fstat(descriptor).st_ino, target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_directory(target) as directory:
        (directory / "inner").mkdir()
        (directory / "inner" / "file").write_text("x")
    before = {number for number, appeared in flushed if not appeared}
    names = ("", "inner", "inner/file", "digests.json")
    assert before == {(target / name).stat().st_ino for name in names}
    assert flushed[-1] == (tmp_path.stat().st_ino, True)  # and then its name


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"), whole_directory(tmp_path / "target") as directory:
        (directory / "file").write_text("x")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("x")
    with pytest.raises(CheckpointError, match="exists already"), whole_directory(tmp_path / "target"):
        pass
    assert (tmp_path / "target" / "mine").read_text() == "x"


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old")
    write_atomically(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "new"


def test_special_tokens_are_written_by_the_names_of_transformers_4(base_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn|>", "<|über|>"]})
    tokenizer.chat_template = "{{ messages }}"
    save_tokenizer(tokenizer, tmp_path)
    values = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert values["additional_special_tokens"] == ["<|turn|>", "<|über|>"] and "extra_special_tokens" not in values
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.all_special_tokens == tokenizer.all_special_tokens
    assert again.chat_template == tokenizer.chat_template
