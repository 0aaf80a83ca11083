"""What a server is given: merged once, linked under a name, with a chat template."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from tests.merge.adapters import load, logits, longlora_adapter, save_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from longlora.errors import CheckpointError
from longlora.models.chat_template import ensure_chat_template
from longlora.serving import served_model
from longlora.serving.served_model import merged_adapter, servable
from longlora.tiny import tiny_model_directory


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "longlora" / "merged"


def test_an_adapter_is_merged_once(cache: Path, base_model: Path, tmp_path: Path, seed: int) -> None:
    base = save_base(tmp_path / "base", "llama", seed, base_model)
    adapter = longlora_adapter(base, tmp_path / "mine" / "adapter")
    with servable(str(tmp_path / "mine" / "adapter")) as served:
        assert (served.name, served.context_length) == ("mine", 64)
        torch.testing.assert_close(logits(load(served.folder), seed), logits(adapter, seed), atol=1e-4, rtol=1e-5)
    assert not served.folder.parent.exists()
    (merged,) = [folder for folder in cache.iterdir() if folder.is_dir()]
    assert merged.name.startswith("mine-")
    made = merged.stat().st_mtime_ns
    assert merged_adapter(tmp_path / "mine" / "adapter") == merged and merged.stat().st_mtime_ns == made

    os.utime(tmp_path / "mine" / "adapter" / "adapter_model.safetensors", ns=(1, 1))  # trained anew
    assert merged_adapter(tmp_path / "mine" / "adapter") != merged


def test_the_papers_prompt_where_there_is_no_template(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine = Path(shutil.copytree(tiny_model_directory(), tmp_path / "mine"))
    with servable(str(mine)) as served:
        served = served.folder
        assert (served / "model.safetensors").is_symlink()
        tokenizer = AutoTokenizer.from_pretrained(served)
        text = tokenizer.apply_chat_template([{"role": "user", "content": "why"}], tokenize=False)
        assert "[INST]why[/INST]" in text
        assert AutoModelForCausalLM.from_pretrained(served).config.vocab_size == 2048
    assert "has no chat template" in caplog.text
    assert AutoTokenizer.from_pretrained(mine).chat_template is None  # the user's own is as it was


def test_a_template_of_the_models_own_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine = Path(shutil.copytree(tiny_model_directory(), tmp_path / "mine"))
    tokenizer = AutoTokenizer.from_pretrained(mine)
    ensure_chat_template(tokenizer)
    tokenizer.chat_template += "{{- 'mine' -}}"
    tokenizer.save_pretrained(mine)
    with servable(str(mine)) as served:
        served = served.folder
        assert AutoTokenizer.from_pretrained(served).chat_template.endswith("{{- 'mine' -}}")
        assert all(file.is_symlink() for file in served.iterdir())
    assert "chat template" not in caplog.text


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("runs/books 32k/adapter", "books-32k"),
        ("runs/mine/merged", "mine"),
        ("me/model@v2:x", "model-v2-x"),
        ("runs/adapter/model", "runs"),
        ("…", "model"),
    ],
)
def test_names(source: str, name: str, tmp_path: Path) -> None:
    assert served_model._name(str(tmp_path / source)) == name


def test_a_name_of_the_users_own() -> None:
    with servable("tiny", name="other") as served:
        assert (served.folder / "config.json").exists() and served.context_length == 256
    with servable("tiny") as served:
        assert served.name == "tiny"


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no model"), servable(str(tmp_path / "nowhere")):
        pass
    with pytest.raises(CheckpointError, match="cannot be downloaded from the hub"), servable("nobody/no-such-model"):
        pass
