"""The card of a merged model says what it was made of, and what was measured of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from longlora.checkpoint import Extension
from longlora.merge.card import write_card

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
    assert ("packed to nf4" in card(tmp_path, quantization=quantization)) is (quantization is not None)
