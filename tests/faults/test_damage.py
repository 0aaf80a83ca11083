"""Whatever byte of a checkpoint, a cache or an adapter is another, it is never used without a word."""

import hashlib
import json
import logging
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.faults.world import World, flip_a_byte, fresh_copy

from longlora.config import Recipe
from longlora.data.document_rows import pack_rows, tokenize_documents
from longlora.data.sources import read_documents
from longlora.data.table_cache import content_digest
from longlora.errors import CheckpointError, ConfigError, DataError
from longlora.merge import merge_adapter
from longlora.models.generation import saved_settings
from longlora.models.load import load_config, load_for_inference, load_tokenizer
from longlora.support import whole
from longlora.support.digests import DIGESTS_FILE, find_damage, seal
from longlora.support.whole import BY_HAND, check_whole
from longlora.training.run import train
from longlora.training.run_directory import open_run


def noted(folder: Path) -> Any:
    """What digests.json says, or nothing."""
    try:
        return json.loads((folder / DIGESTS_FILE).read_text())
    except ValueError:
        return None


def test_any_byte_of_a_checkpoint(world: World, run: Path, recipe: Recipe, chance: random.Random, caplog: Any) -> None:
    checkpoints = run / "checkpoints"
    good = noted(checkpoints / "checkpoint-4")
    for _ in range(25):
        fresh_copy(world.root / "interrupted", run)
        flip_a_byte(checkpoints / "checkpoint-4", chance, but=("README.md",))
        says_the_same = noted(checkpoints / "checkpoint-4") == good and not find_damage(checkpoints / "checkpoint-4")
        caplog.clear()
        with open_run(recipe) as opened:
            if says_the_same:  # a space of digests.json became another
                continue
            assert opened.resumes_from == checkpoints / "checkpoint-2"
        assert "checkpoint-4 is damaged and was set aside as damaged-checkpoint-4" in caplog.text
        assert (checkpoints / "damaged-checkpoint-4").is_dir()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "adapter_model.safetensors", "trainer_state.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_file_of_a_checkpoint_that_is_missing_or_cut(run: Path, recipe: Recipe, name: str, damage: str) -> None:
    file = run / "checkpoints" / "checkpoint-4" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "empty" else file.read_bytes()[:-1])
    with open_run(recipe) as opened:
        assert opened.resumes_from == run / "checkpoints" / "checkpoint-2"


def test_no_checkpoint_that_is_whole(run: Path, recipe: Recipe) -> None:
    for step in (2, 4):
        (run / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"")
    said = r"intact \(checkpoint-4: optimizer\.pt has 0 bytes.*checkpoint-2.*delete"
    with pytest.raises(CheckpointError, match=said):
        train(recipe)
    assert (run / "checkpoints" / "checkpoint-2" / "scheduler.pt").exists()


def test_folders_of_other_names_are_in_nobody_s_way(run: Path, recipe: Recipe) -> None:
    checkpoints = run / "checkpoints"
    (checkpoints / "checkpoint-old").mkdir()
    (checkpoints / "checkpoint-999").mkdir()
    (checkpoints / "checkpoint-12").write_text("a file")
    with open_run(recipe) as opened:
        assert opened.resumes_from == checkpoints / "checkpoint-4"
    assert (checkpoints / "checkpoint-old").exists() and not (checkpoints / "checkpoint-999").exists()


def test_a_run_goes_on_from_the_checkpoint_before_and_arrives_at_the_same(
    world: World, run: Path, recipe: Recipe
) -> None:
    whole = fresh_copy(world.root / "interrupted", run.with_name("whole"))
    (run / "checkpoints" / "checkpoint-4" / "rng_state.pth").write_bytes(b"x")
    adapters = [train(recipe), train(world.recipe("interrupted", output_dir=str(whole)))]
    found, expected = (adapter / "adapter_model.safetensors" for adapter in adapters)
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    "content", ["", "[", "- 1", "a: 2024-13-45", "model_name_or_path: [1]", "\0", "[" * 5000, "a: &a [*a]"]
)
def test_a_damaged_recipe_of_a_run(run: Path, recipe: Recipe, content: str) -> None:
    (run / "recipe.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"missing or damaged|of another recipe"), open_run(recipe):
        pass


@pytest.mark.parametrize("content", ["", "[", "{}x", "[1]", "[{}]", '[{"processes": "2"}]', "[" * 5000, '{"a": 1}'])
def test_a_damaged_record_of_starts_begins_anew(run: Path, recipe: Recipe, content: str, caplog: Any) -> None:
    (run / "environment.json").write_text(content)
    with open_run(recipe) as opened:
        assert opened.resumes_from == run / "checkpoints" / "checkpoint-4"
    assert "environment.json is damaged and was set aside" in caplog.text
    assert (run / "damaged-environment.json").read_text() == content


def test_changed_data_is_refused_and_moved_data_is_not(world: World, run: Path, recipe: Recipe, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    data = {"source": str(texts), "cache_dir": str(tmp_path / "cache")}
    recipe = world.recipe("interrupted", output_dir=str(run), data=data)
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace(str(world.texts), str(texts)))
    (run / "recipe.yaml").write_text(
        (run / "recipe.yaml").read_text().replace(str(world.root / "cache"), str(tmp_path / "cache"))
    )
    shutil.copytree(world.texts, texts)
    (texts / "one.txt").write_text((texts / "one.txt").read_text().replace("ship", "boat", 1))
    with pytest.raises(DataError, match=r"has been trained on \(training rows \d+ of sha256 .* put it back as it was"):
        train(recipe)
    shutil.copy(world.texts / "one.txt", texts)  # with another time, in another place
    assert train(recipe).exists()


def test_any_byte_of_a_cache(world: World, tmp_path: Path, chance: random.Random, caplog: Any) -> None:
    tokenizer, source = load_tokenizer(str(world.base)), read_documents(str(world.texts))

    def rows() -> str:
        documents = tokenize_documents(source, tokenizer, cache_dir=tmp_path, show_progress=False)
        return content_digest(pack_rows(documents, context_length=128))

    good = rows()
    (table,) = (path for path in (tmp_path / "tokenized").iterdir() if path.is_dir())
    (packed,) = (path for path in table.iterdir() if path.is_dir())
    for folder in [table, packed] * 6:
        caplog.clear()
        file = folder / chance.choice([*noted(folder)])
        data = bytearray(file.read_bytes())
        data[chance.randrange(len(data))] ^= chance.randrange(1, 256)
        file.write_bytes(data)
        assert rows() == good
        assert f"the content of {file.name} has changed" in caplog.text
        (packed,) = (path for path in table.iterdir() if path.is_dir())


def test_any_byte_of_an_adapter(world: World, tmp_path: Path, chance: random.Random, caplog: Any) -> None:
    source = world.root / "finished" / "adapter"
    for _ in range(25):
        adapter = fresh_copy(source, tmp_path / "adapter")
        file = flip_a_byte(adapter, chance)
        if file.name == DIGESTS_FILE and noted(adapter) == noted(source):
            continue
        caplog.clear()
        try:
            check_whole(adapter)
        except CheckpointError as error:
            assert re.search(r"is not as it was written: .*(copy it again|delete its digests)", str(error))
        else:
            assert any(name in caplog.text for name in BY_HAND), file
            assert "; the present content is used" in caplog.text
    fresh_copy(source, adapter)
    flip_a_byte(adapter, chance, but=("README.md", DIGESTS_FILE, *BY_HAND))
    for use in (load_for_inference, lambda path: merge_adapter(path, tmp_path / "merged")):
        with pytest.raises(CheckpointError, match="is not as it was written"):
            use(adapter)
    assert not (tmp_path / "merged").exists()


def test_what_people_write_in_may_be_edited(world: World, tmp_path: Path, caplog: Any) -> None:
    adapter = fresh_copy(world.root / "finished" / "adapter", tmp_path / "adapter")
    (adapter / "README.md").write_text("mine")
    (adapter / "notes.txt").write_text("mine")
    check_whole(adapter)
    assert caplog.text == ""
    settings = json.loads((adapter / "generation_config.json").read_text()) | {"max_new_tokens": 7}
    (adapter / "generation_config.json").write_text(json.dumps(settings))
    load_for_inference(adapter)
    assert saved_settings(adapter, load_config(str(world.base))).max_new_tokens == 7
    assert re.search(r"adapter: generation_config\.json has \d+ bytes, but .* the present content is used", caplog.text)


def test_large_files_are_read_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "_LARGE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    adapter = fresh_copy(world.root / "finished" / "adapter", tmp_path / "adapter")
    read: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name))
    check_whole(adapter)
    assert len(read) == len(noted(adapter))
    read.clear()
    check_whole(adapter)
    assert read == []
    monkeypatch.setenv(whole.VERIFY_VARIABLE, "1")
    check_whole(adapter)
    assert len(read) == len(noted(adapter))
    monkeypatch.delenv(whole.VERIFY_VARIABLE)
    weights = adapter / "adapter_model.safetensors"
    before, data = weights.stat(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps times
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"the content of adapter_model\.safetensors has changed"):
            check_whole(adapter)


@pytest.mark.parametrize("content", ["", "[1]", "{}x", '{"a": 1}'])
def test_a_record_of_known_files_that_makes_no_sense(tmp_path: Path, content: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(whole, "_LARGE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    record = tmp_path / "cache" / "longlora" / "verified.json"
    record.parent.mkdir(parents=True)
    record.write_text(content)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_text("a")
    seal(tmp_path / "model")
    check_whole(tmp_path / "model")
    assert str(tmp_path / "model" / "a") in json.loads(record.read_text())
    (tmp_path / "model" / "a").write_text("b")
    with pytest.raises(CheckpointError):
        check_whole(tmp_path / "model")


def test_a_published_model_is_sealed_too(world: World, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    merge_adapter(world.root / "finished" / "adapter", merged, check=False)
    weights = merged / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"the content of model\.safetensors has changed"):
        load_for_inference(merged)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"a": 1}',
        '{"../x": {"bytes": 1, "sha256": ""}}',
        '{"/dev/zero": {"bytes": 0, "sha256": ""}}',
        '{"a": {"bytes": 1e999, "sha256": ""}}',  # infinite, as one damaged digit of a long number makes it
        "[" * 5000,
    ],
)
def test_digests_that_make_no_sense(tmp_path: Path, content: str) -> None:
    (tmp_path / "a").write_text("a")
    seal(tmp_path)
    assert find_damage(tmp_path) == ""
    (tmp_path / DIGESTS_FILE).write_text(content)
    assert find_damage(tmp_path)


def test_what_is_damaged_is_said_once(world: World, run: Path, recipe: Recipe, caplog: Any) -> None:
    caplog.set_level(logging.WARNING)
    (run / "checkpoints" / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    for _ in range(2):
        with open_run(recipe):
            pass
    assert caplog.text.count("is damaged") == 1
