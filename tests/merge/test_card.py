"""The card of a merged model says what it was made of, and what was measured of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.merge import adapters
from transformers import AutoTokenizer

from longlora.merge import write_adapter_card
from longlora.merge.card import write_card
from longlora.models.directories import Extension, save_tokenizer, write_extension
from longlora.models.load import load_for_inference

ROPE = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}


def card(tmp_path: Path, base: str = "meta-llama/Llama-2-7b-hf", **extension: Any) -> str:
    adapter, merged = tmp_path / "run" / "adapter", tmp_path / "merged"
    adapter.mkdir(parents=True, exist_ok=True)
    merged.mkdir(exist_ok=True)
    values = {"base_model": base, "base_context": 4096, "context_length": 32768, "rope_parameters": ROPE}
    made = Extension(**{**values, **extension}) if extension.pop("known", True) else None
    write_card(merged, adapter=adapter, base=base, extension=made)
    return (merged / "README.md").read_text(encoding="utf-8")


def test_recipe_and_measurements_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "passkey").mkdir(parents=True)
    recipe = {"context_length": 32768, "output_dir": "mine/runs", "data": {"source": "x", "cache_dir": "c"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = {"test": "passkey", "verdict": "reads to 30,000 tokens", "provenance": {"date": "2026-01-02T03:04:05"}}
    result["settings"] = {"model": "elsewhere/run/adapter"}
    (run / "passkey" / "result.json").write_text(json.dumps(result))
    positions = {"verdict": "the loss is lowest at the end", "provenance": result["provenance"]}
    positions["model"] = str(run / "adapter")
    (run / "curve").mkdir()
    (run / "curve" / "positions.json").write_text(json.dumps(positions))
    (run / "base").mkdir()
    of_base = result | {"verdict": "reads nothing", "settings": {"model": "meta-llama/Llama-2-7b-hf"}}
    (run / "base" / "result.json").write_text(json.dumps(of_base))
    (run / "other").mkdir()
    (run / "other" / "result.json").write_text("[]")

    text = card(tmp_path)
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "meta-llama/Llama-2-7b-hf"
    assert "# meta-llama/Llama-2-7b-hf, extended to 32,768 tokens" in body
    assert "reads 4,096 tokens" in body and "linear, factor 8" in body
    assert "- passkey (2026-01-02): reads to 30,000 tokens" in body
    assert "- loss by position (2026-01-02): the loss is lowest at the end" in body
    assert "reads nothing" not in body
    written = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert written == {"context_length": 32768, "data": {"source": "x"}}  # no places of this machine


def test_nothing_is_said_that_is_not_known(tmp_path: Path) -> None:
    text = card(tmp_path, base=str(tmp_path), known=False)
    assert "base_model" not in text and "Measured" not in text and "Recipe" not in text
    assert str(tmp_path.parent) not in text


@pytest.mark.parametrize("quantization", ["nf4", None])
def test_a_base_of_fewer_bits_is_said(tmp_path: Path, quantization: str | None) -> None:
    assert ("quantized to nf4" in card(tmp_path, quantization=quantization)) is (quantization is not None)


def test_an_adapter_s_card_shows_how_to_load_it_by_peft_alone(base_model: Path, tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    extension = Extension(base_model=str(base_model), base_context=64, context_length=128, rope_parameters=rope)
    adapters.longlora_adapter(base_model, tmp_path)
    write_extension(tmp_path, extension)
    save_tokenizer(AutoTokenizer.from_pretrained(base_model), tmp_path)
    write_adapter_card(tmp_path, extension)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert str(base_model) not in text and "base_model" not in text.split("---\n")[1]  # no path of this machine
    assert "More Information Needed" not in text
    assert "extends model to 128 tokens" in text

    snippet = text.split("```python\n")[1].split("```")[0]
    snippet = snippet.replace("DIRECTORY OR HUB NAME OF THE BASE", str(base_model))
    names: dict[str, Any] = {}
    exec(snippet.replace("DIRECTORY OR HUB NAME", str(tmp_path)), names)
    expected, _ = load_for_inference(tmp_path, dtype="float32", device="cpu")
    tokens = torch.arange(128)[None]
    with torch.no_grad():
        torch.testing.assert_close(names["model"](tokens).logits, expected(tokens).logits)


def test_an_adapter_s_card_names_a_base_of_the_hub(tmp_path: Path) -> None:
    values = {"base_model": "meta-llama/Llama-2-7b-hf", "base_context": 4096, "context_length": 32768}
    write_adapter_card(tmp_path, Extension(**values, rope_parameters=ROPE, vocabulary_rows=32001, quantization="nf4"))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["base_model"], front["library_name"]) == ("meta-llama/Llama-2-7b-hf", "peft")
    assert 'from_pretrained("meta-llama/Llama-2-7b-hf", config=config' in text
    assert "resize_token_embeddings(32001" in text and "quantized to nf4" in text
