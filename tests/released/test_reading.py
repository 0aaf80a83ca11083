"""What a folder holds, how far it reads, and what is refused before any of it is used."""

import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from longlora.errors import CheckpointError, ConfigError
from longlora.models.shards import opened
from longlora.released.published_folder import find_folder, infer_context, read_folder
from longlora.released.published_weights import alone, read_weights
from longlora.support.files import read_json


class Program:
    """Unpickled, it would run a command."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "older"])
def test_weights_are_read_and_old_buffers_left_out(tmp_path: Path, as_zip: bool) -> None:
    weights = {"a.weight": torch.randn(3, 5), "l.rotary_emb.inv_freq": torch.ones(2)}
    torch.save(weights, tmp_path / "x.bin", _use_new_zipfile_serialization=as_zip)
    found = read_weights(tmp_path / "x.bin")
    assert found.keys() == {"a.weight"} and torch.equal(found["a.weight"], weights["a.weight"])


@pytest.mark.parametrize("plain", [True, False], ids=["pickle", "torch"])
def test_a_pickle_that_runs_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool) -> None:
    monkeypatch.chdir(tmp_path)
    if plain:
        Path("x.bin").write_bytes(pickle.dumps({"a": Program()}, protocol=2))
    else:
        torch.save({"a": Program()}, "x.bin")
    with pytest.raises(
        CheckpointError, match=r"contains (posix|nt)\.mkdir, .* could execute arbitrary code"
    ) as refused:
        read_weights(Path("x.bin"))
    assert "weights_only" not in str(refused.value)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}])
def test_no_table_of_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="is not a table of weights"):
        read_weights(tmp_path / "x.bin")


@pytest.mark.parametrize("name", ["x.bin", "x.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\3\4 and no more", b"<html>not found</html>", b"error"])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read: .*download it again") as refused:
        read_weights(tmp_path / name)
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("name", ["x.bin", "x.safetensors"])
def test_what_a_clone_without_large_files_left(tmp_path: Path, name: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea\nsize 13476850247\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(CheckpointError, match="run `git lfs pull`"):
        read_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match="run `git lfs pull`"), opened(tmp_path / name):
        pass


def test_a_part_of_a_larger_weight_is_copied() -> None:
    large = torch.randn(4, 6)
    assert alone(large) is large
    for part in (large[:2], large.T):
        copy = alone(part)
        assert torch.equal(copy, part) and copy.is_contiguous()
        assert copy.untyped_storage().nbytes() == part.nbytes


def test_json_that_is_none(tmp_path: Path) -> None:
    for content, reason in (("{", "cannot be read"), ("[]", "must contain a JSON object")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(CheckpointError, match=reason):
            read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "neither LoRA weights"),
        (["adapter_config.json"], "no weights"),
        (["adapter_model.bin"], r"no adapter_config\.json"),
        (["trainable_params.bin", "pytorch_model.bin"], r"no adapter_config\.json"),
        (["pytorch_model.bin"], r"no config\.json"),
        (["config.json", "pytorch_model.bin.index.json"], "every file of"),
    ],
)
def test_folders_that_hold_a_part(tmp_path: Path, files: list[str], reason: str) -> None:
    for file in files:
        (tmp_path / file).write_text("{}")
    with pytest.raises(CheckpointError, match=reason):
        read_folder(tmp_path)


@pytest.mark.parametrize("source", ["./nowhere", "a/b/c", "nowhere"])
def test_no_such_folder(source: str) -> None:
    with pytest.raises(CheckpointError, match="there is no directory"):
        find_folder(source)


def test_a_name_on_the_hub_that_cannot_be_reached() -> None:
    with pytest.raises(CheckpointError, match="cannot be downloaded from the hub"):
        find_folder("Yukang/Llama-2-7b-longlora-8k")


def context(folder: Path, name: str, *, asked: int | None = None) -> tuple[int, float, str]:
    found = infer_context(folder, name, asked=asked, base_context=4096)
    return found.length, found.factor, found.known_from


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Yukang/Llama-2-7b-longlora-100k-ft", (100000, 25.0, "the list of released models")),
        ("models/LongAlpaca-13B/", (32768, 8.0, "the list of released models")),
        ("me/llama-2-7b-64k-mine", (65536, 16.0, "its name")),
    ],
)
def test_a_name_tells_the_context(tmp_path: Path, name: str, expected: tuple[int, float, str]) -> None:
    assert context(tmp_path, name) == expected


@pytest.mark.parametrize("name", ["mine", "me/llama-100k", "8k-to-16k", "tok32k5"])
def test_a_name_that_does_not(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="give --context"):
        context(tmp_path, name)
    assert context(tmp_path, name, asked=9000) == (9000, 3.0, "--context")


def test_the_tokenizer_tells_last(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 16384}))
    assert context(tmp_path, "mine") == (16384, 4.0, "its tokenizer's model_max_length")
    assert context(tmp_path, "mine-8k") == (8192, 2.0, "its name")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    with pytest.raises(ConfigError, match="the context of mine is unknown"):
        context(tmp_path, "mine")


def test_the_configuration_decides_against_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="longlora")
    (tmp_path / "config.json").write_text(json.dumps({"rope_scaling": {"type": "linear", "factor": 8.0}}))
    assert context(tmp_path, "mine") == (32768, 8.0, "the configuration's rope_scaling")
    assert context(tmp_path, "x/LongAlpaca-7B") == (32768, 8.0, "the list of released models")
    assert not caplog.records
    assert context(tmp_path, "x/LongAlpaca-7B-16k") == (32768, 8.0, "the configuration's rope_scaling")
    assert "the configuration decides" in caplog.text
    assert context(tmp_path, "mine", asked=16384) == (16384, 4.0, "--context")
    assert "--context decides" in caplog.text


def test_other_scalings_and_shorter_contexts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not longer than the 4,096 of the base"):
        context(tmp_path, "mine-4k")
    (tmp_path / "config.json").write_text(json.dumps({"rope_scaling": {"type": "yarn", "factor": 8.0}}))
    with pytest.raises(ConfigError, match="of the type yarn"):
        context(tmp_path, "mine-8k")
