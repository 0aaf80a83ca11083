"""Every recipe that ships with longlora trains, for a few steps, with a random miniature of its model."""

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.families.families import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from longlora.cli import main as cli
from longlora.config import Recipe, load_recipe
from longlora.planner.architecture import find_architecture
from longlora.planner.known_models import find_known_model, known_models
from longlora.recipes import recipe_names
from longlora.training.miniature import CONTEXT_LENGTH, NUM_STEPS, _shrunk, _write_tokenizer, miniature_recipe
from longlora.training.run import train


def small(name: str, folder: Path, *overrides: str) -> Recipe:
    cache = f"data.cache_dir={folder / 'cache'}"
    return miniature_recipe(load_recipe(name, [f"output_dir={folder / name}", cache, *overrides]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One place for all, so that the texts are tokenised once."""
    return tmp_path_factory.mktemp("miniatures")


def recipes() -> Iterator[Any]:
    """Every recipe; those that differ from an earlier one only in size or context are slow tests."""
    seen = set()
    for name in recipe_names():
        recipe, known = load_recipe(name), find_known_model(load_recipe(name).model_name_or_path)
        kind = known.config["model_type"] if known else name
        way = (kind, recipe.tuning, recipe.data.kind, recipe.quantization, recipe.rope.rope_type)
        yield pytest.param(name, marks=pytest.mark.slow if way in seen else ())
        seen.add(way)


@pytest.mark.parametrize("name", list(recipes()))
def test_a_recipe_trains_in_miniature(name, folder):
    original, recipe = load_recipe(name), small(name, folder, "dtype=float32")
    result = train(recipe)
    assert result.name == ("model" if original.tuning == "full" else "adapter")
    lines = (Path(recipe.output_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert len(losses) == NUM_STEPS and all(0 < loss < 20 for loss in losses)
    assert recipe.tuning == original.tuning
    assert recipe.attention.dense_finish == original.attention.dense_finish
    assert bool(recipe.attention.full_attention_interval) == bool(original.attention.full_attention_interval)
    assert recipe.lora == original.lora
    extension = json.loads((result / "longlora.json").read_text(encoding="utf-8"))
    assert extension["context_length"] == CONTEXT_LENGTH
    factor = original.context_length / extension_base(original)
    assert CONTEXT_LENGTH / extension["base_context"] == pytest.approx(factor, rel=0.05)
    assert extension["rope_parameters"]["rope_type"] == original.rope.rope_type


def extension_base(recipe: Recipe) -> int:
    return recipe.rope.base_context or find_architecture(recipe.model_name_or_path).max_position_embeddings


def test_a_miniature_has_layers_of_both_kinds() -> None:
    """Otherwise those of models that end in layers with windows (Gemma 3 4B) could not train in groups."""
    of_two_kinds = 0
    for model in known_models():
        original = AutoConfig.for_model(**copy.deepcopy(model.config)).get_text_config()
        kinds = set(getattr(original, "layer_types", None) or ())
        assert set(getattr(_shrunk(original, 8), "layer_types", None) or ()) == kinds, model.name
        of_two_kinds += len(kinds) == 2
    assert of_two_kinds >= 3


@pytest.mark.parametrize(("processes", "sharing"), [(1, 1), (2, 2), (12, 4), (16, 8)])
def test_as_many_processes_share_a_row_as_there_are(processes, sharing, folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert small("qwen3-8b-longlora-1m", folder).sequence_parallel_size == sharing


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipes_model_has_the_parameters_that_its_plan_counts(name):
    recipe = load_recipe(name)
    known = find_known_model(recipe.model_name_or_path)
    if known is None:
        pytest.skip("the tiny model is there in person")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**known.config))
    assert sum(p.numel() for p in model.parameters()) == find_architecture(recipe.model_name_or_path).num_parameters


def test_a_miniature_keeps_the_ratio_of_heads_and_reads_texts_that_are_there(tmp_path, text_folder):
    recipe = small("llama-2-70b-longlora-32k", tmp_path, f"data.source={text_folder}")
    config = AutoConfig.from_pretrained(recipe.model_name_or_path)
    assert config.num_attention_heads == 8 * config.num_key_value_heads  # as 64 and 8
    assert recipe.data.source == str(text_folder)
    again = small("llama-2-70b-longlora-32k", tmp_path, f"data.source={text_folder}")
    assert again == recipe


# Two of music, whose configurations have two text models, and one whose default configuration its own class refuses.
NO_LANGUAGE_MODELS = {"musicgen", "musicgen_melody", "gemma4_assistant"}


def types() -> Iterator[Any]:
    """Every type of causal models in transformers that has its own configuration; those not of a family are slow."""
    families = {family.model_type for family in FAMILIES}
    others = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() & CONFIG_MAPPING_NAMES.keys() - NO_LANGUAGE_MODELS
    for name in sorted(families | others):
        yield pytest.param(name, marks=() if name in families else pytest.mark.slow)


@pytest.mark.parametrize("name", list(types()))
def test_a_tokenizer_of_any_type_has_a_row_for_each_token(name, tmp_path):
    """Beside the configuration of some types AutoTokenizer takes a class of theirs, with tokens of its own."""
    config = AutoConfig.for_model(name)
    _write_tokenizer(config, tmp_path)
    config.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert max(tokenizer.get_vocab().values()) < config.get_text_config().vocab_size
    assert tokenizer.decode(tokenizer("import os")["input_ids"], skip_special_tokens=True).strip() == "import os"


def test_a_miniature_of_qwen_2_trains(tmp_path, text_folder):
    config = AutoConfig.for_model("qwen2", hidden_size=64, num_hidden_layers=2, max_position_embeddings=256)
    config.save_pretrained(tmp_path / "base")
    recipe = small("tiny-1k", tmp_path, f"model_name_or_path={tmp_path / 'base'}", f"data.source={text_folder}")
    assert train(recipe.model_copy(update={"max_steps": 1})).is_dir()


def test_the_command_line_trains_a_miniature(tmp_path, monkeypatch, capsys):
    cache = f"data.cache_dir={tmp_path / 'cache'}"
    arguments = ["train", "llama-2-7b-longlora-8k", f"output_dir={tmp_path / 'run'}", cache, "--miniature"]
    monkeypatch.setattr(sys, "argv", ["longlora", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert f"written to {tmp_path / 'run-miniature' / 'run' / 'adapter'}" in capsys.readouterr().out
