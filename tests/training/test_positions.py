"""A run extends positions as its recipe says; what it leaves, and a run after it, start from there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import MakeRecipe

from longlora.merge import merge_adapter
from longlora.models.load import load_for_inference, load_for_training
from longlora.models.positions import readable_context
from longlora.training.run import train

ROPES: dict[str, dict[str, Any]] = {
    "linear": {},
    "dynamic": {},
    "yarn": {"beta_fast": 16, "attention_factor": 1.1},
    "llama3": {"factor": 3.0},
    "longrope": {"long_factor": [1.0, 1.5, 2.0, 2.5]},
    "theta": {},
}


@pytest.mark.parametrize("rope_type", ROPES)
def test_two_runs_one_after_the_other(make_recipe: MakeRecipe, tmp_path: Path, rope_type: str) -> None:
    rope = {"rope_type": rope_type, **ROPES[rope_type]}
    adapter = train(make_recipe(max_steps=2, rope=rope))
    said = json.loads((adapter / "longlora.json").read_text())
    assert (said["base_context"], said["context_length"]) == (64, 128)
    merge_adapter(adapter, tmp_path / "merged")
    merged, _ = load_for_inference(tmp_path / "merged", dtype="float32")
    model, tokenizer = load_for_inference(adapter, dtype="float32")
    assert merged.config.rope_parameters == model.config.rope_parameters == said["rope_parameters"]
    assert readable_context(merged.config) == (128 if rope_type != "dynamic" else 2 * 64)
    assert merged.config.max_position_embeddings == (64 if rope_type == "dynamic" else 128)
    assert tokenizer.model_max_length == 128
    tokens = torch.arange(128, device=model.device)[None] + 3
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=tokens).logits, model(input_ids=tokens).logits, atol=1e-4, rtol=0)

    rope |= {"factor": 9.0} if rope_type == "llama3" else {}
    second = make_recipe(model_name_or_path=str(tmp_path / "merged"), context_length=512, rope=rope)
    extension = load_for_training(second).extension
    assert (extension.base_context, extension.context_length) == (128, 512)
    at_once = load_for_training(make_recipe(context_length=512, rope=rope)).extension
    assert extension.rope_parameters.keys() == at_once.rope_parameters.keys()
    for key, value in at_once.rope_parameters.items():
        assert extension.rope_parameters[key] == (pytest.approx(value) if isinstance(value, float) else value), key


@pytest.mark.parametrize("rope_type", ["linear", "dynamic", "longrope"])
def test_positions_that_go_by_the_longest_document_are_warned_of(
    make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture, rope_type: str
) -> None:
    recipe = make_recipe(max_steps=1, rope={"rope_type": rope_type, **ROPES[rope_type]})
    train(recipe)
    warned = f"rope.rope_type={rope_type} depends on the longest document in a row" in caplog.text
    assert warned is (rope_type != "linear")
