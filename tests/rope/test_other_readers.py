"""Each reader that computes other positions than transformers 5 is named, and no other."""

from typing import Any

import pytest
from transformers import AutoConfig

from longlora.config import load_recipe
from longlora.models.load import extended_config
from longlora.planner.known_models import find_known_model
from longlora.recipes import find_recipe, recipe_names
from longlora.rope.other_readers import misread

THETA = {"rope_type": "default", "rope_theta": 5000.0}
LINEAR = THETA | {"rope_type": "linear", "factor": 4.0}
YARN = LINEAR | {"rope_type": "yarn", "original_max_position_embeddings": 256}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
DYNAMIC = LINEAR | {"rope_type": "dynamic"}
LONGROPE = YARN | {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("parameters", [THETA, LINEAR, YARN, YARN | {"beta_fast": 32, "truncate": True}])
def test_what_everyone_reads(parameters: dict[str, Any], model_type: str) -> None:
    assert misread(parameters, model_type=model_type) == {}


@pytest.mark.parametrize(
    ("parameters", "model_type", "readers"),
    [
        (LLAMA3, "llama", []),
        (LLAMA3, "qwen3", ["llama.cpp"]),
        ({"full_attention": LLAMA3, "sliding_attention": THETA}, "gemma3_text", ["llama.cpp"]),
        (DYNAMIC, "llama", ["llama.cpp", "vLLM"]),
        (LONGROPE, "llama", ["llama.cpp"]),
        (LONGROPE | {"attention_factor": 1.2}, "llama", ["llama.cpp", "vLLM"]),
        (YARN | {"attention_factor": 1.2}, "llama", ["llama.cpp", "vLLM"]),
        (YARN | {"mscale": 0.7, "mscale_all_dim": 0.5}, "llama", ["llama.cpp", "vLLM"]),
        (YARN | {"beta_fast": 16}, "llama", ["llama.cpp"]),
        (YARN | {"truncate": False}, "llama", ["transformers 4", "llama.cpp"]),
        (LINEAR, "gemma2", ["llama.cpp"]),
        (THETA, "gemma2", ["llama.cpp"]),
        (THETA | {"rope_theta": 10000.0}, "gemma2", []),
        (LINEAR, "olmo2", []),
        (YARN, "olmo2", ["transformers 4"]),
        (LINEAR, "nemotron", ["transformers 4"]),
    ],
)
def test_who_misreads(parameters: dict[str, Any], model_type: str, readers: list[str]) -> None:
    assert list(misread(parameters, model_type=model_type)) == readers


def test_what_is_misread_is_named() -> None:
    said = misread(YARN | {"attention_factor": 1.2, "beta_slow": 2}, model_type="llama")
    assert said["llama.cpp"] == "beta_slow, attention_factor of yarn are read wrongly or not at all"
    assert said["vLLM"] == "attention_factor of yarn is not read"


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_stay_on_what_is_read(name: str) -> None:
    recipe = load_recipe(find_recipe(name))
    known = find_known_model(recipe.model_name_or_path)
    if known is None:
        pytest.skip(f"{recipe.model_name_or_path} is no model of the hub")
    config = AutoConfig.for_model(**known.config)
    extended_config(config, recipe)
    text_config = config.get_text_config()
    assert misread(text_config.rope_parameters, model_type=text_config.model_type) == {}
