"""Shapes and parameter counts are those of transformers' own models."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from longlora.errors import CheckpointError, ConfigError
from longlora.planner import Architecture, find_architecture, parse_architecture, published_config
from longlora.planner.architecture import FACTS, FAMILIES, known_names
from longlora.rope import present_context
from longlora.tiny import tiny_model_directory

PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-chat-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "Qwen/Qwen3-8B": 8_190_735_360,
}
ODD = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def counted_by_transformers(values: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, int]]:
    """Build the model without memory and count its parameters by what they belong to."""
    values = dict(values)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counts = dict.fromkeys(("embeddings", "lm_head", "norms", "attention", "mlp"), 0)
    for name, parameter in model.named_parameters():
        path = name.split(".")
        if "embed_tokens" in path:
            kind = "embeddings"
        elif "lm_head" in path:
            kind = "lm_head"
        elif "norm" in path[-2]:
            kind = "norms"
        else:
            kind = "attention" if "self_attn" in path else "mlp"
        counts[kind] += parameter.numel()
    return model, counts


def windows(model: PreTrainedModel) -> int:
    """Layers whose attention has a window."""
    attentions = [module for name, module in model.named_modules() if name.endswith("self_attn")]
    if any("layer_types" in vars(model.config) for _ in attentions[:1]):
        return model.config.layer_types.count("sliding_attention")
    return len(attentions) if model.config.to_dict().get("sliding_window") else 0


@pytest.mark.parametrize("name", sorted(set(known_names().values())))
def test_facts_make_the_model_that_transformers_makes(name: str) -> None:
    values = json.loads((FACTS / f"{name}.json").read_text())
    _, counts = counted_by_transformers(values)
    assert parse_architecture(values, name).parameters_by_kind() == counts


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_published_totals(name: str, parameters: int) -> None:
    assert find_architecture(name).num_parameters == parameters


def test_every_fact_file_has_a_name_and_every_name_a_file() -> None:
    files = {path.stem for path in FACTS.glob("*.json")} - {"names"}
    assert set(known_names().values()) == files


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [False, True])
def test_every_family_at_odd_sizes(model_type: str, tied: bool) -> None:
    values: dict[str, Any] = {**ODD, "model_type": model_type, "tie_word_embeddings": tied}
    if model_type in ("llama", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "granite", "olmo2"):
        values["attention_bias"] = True
    if model_type in ("llama", "granite"):
        values["mlp_bias"] = True
    if model_type == "mixtral":
        values |= {"num_local_experts": 5, "num_experts_per_tok": 2}
    if model_type == "qwen3_moe":
        values |= {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
    if FAMILIES[model_type].sliding:
        values |= {"sliding_window": 16}
    if FAMILIES[model_type].sliding == "late":
        values |= {"use_sliding_window": True, "max_window_layers": 4}
    model, counts = counted_by_transformers(values)
    shape = parse_architecture(values, "odd")
    assert shape.parameters_by_kind() == counts
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    if FAMILIES[model_type].sliding:
        assert shape.num_sliding_layers == windows(model) > 0


def test_what_a_configuration_leaves_out() -> None:
    """Old files lack keys; the family's defaults are then those of transformers' configuration classes."""
    for model_type, family in FAMILIES.items():
        config = AutoConfig.for_model(model_type)
        assert bool(config.tie_word_embeddings) == family.tied, model_type
        if family.head_dim:
            assert config.head_dim == family.head_dim, model_type
    old = {key: value for key, value in ODD.items() if key not in ("num_key_value_heads", "head_dim")}
    shape = parse_architecture({**old, "model_type": "llama"}, "old")
    assert (shape.num_kv_heads, shape.head_dim, shape.tied) == (6, 8, False)


def test_a_wrong_count_would_be_noticed() -> None:
    values = {**ODD, "model_type": "qwen2"}
    _, counts = counted_by_transformers(values)
    assert parse_architecture({**values, "model_type": "llama"}, "x").parameters_by_kind() != counts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'.*it knows llama"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_size": None}, "hidden_size as a whole number above 0, found None"),
        ({"vocab_size": "many"}, "vocab_size as a whole number above 0, found 'many'"),
        ({"model_type": "mistral", "num_key_value_heads": None}, "num_key_value_heads"),
        (
            {"model_type": "qwen3_moe", "num_experts": 4, "decoder_sparse_step": 2},
            "mixes dense layers and layers of experts",
        ),
    ],
)
def test_what_is_not_known_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_architecture({**ODD, "model_type": "llama", **changes}, "odd")


def test_a_model_directory_and_the_tiny_model(base_model: Path) -> None:
    shape = find_architecture(str(base_model))
    assert (shape.hidden_size, shape.num_kv_heads, shape.tied) == (32, 2, True)
    assert find_architecture("tiny") == parse_architecture(
        json.loads((tiny_model_directory() / "config.json").read_text()), "tiny"
    )


def test_hub_names_in_any_case_share_their_facts() -> None:
    one, other = find_architecture("meta-llama/llama-2-7b-hf"), find_architecture("meta-llama/Llama-2-7b-chat-hf")
    assert isinstance(one, Architecture)
    assert one.parameters_by_kind() == other.parameters_by_kind()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "there is no model directory ./nowhere"),
        ("a/b/c", "there is no model directory a/b/c"),
        ("nobody/knows-this-model", "neither from a directory of that name nor from the hub"),
        ("not a name", "neither from a directory of that name nor from the hub"),
    ],
)
def test_a_model_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_architecture(name)


def test_a_directory_without_a_usable_configuration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        find_architecture(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        find_architecture(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        find_architecture(str(tmp_path))


@pytest.mark.parametrize("name", sorted(known_names()))
def test_positions_are_those_that_transformers_reads(name: str) -> None:
    config = AutoConfig.for_model(**published_config(name))
    assert find_architecture(name).rope_parameters == config.rope_parameters


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"rope_theta": 5.0e5}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
        ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}}),
        ("phi3", {"original_max_position_embeddings": 16, "rope_scaling": None}),
    ],
)
def test_positions_of_either_generation_of_files(model_type: str, changes: dict[str, Any]) -> None:
    values = {
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 61,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "rope_theta": 10_000.0,
        **changes,
    }
    expected = AutoConfig.for_model(**copy.deepcopy(values)).rope_parameters
    found = parse_architecture(values, "small").rope_parameters
    assert {key: expected[key] for key in found} == found
    assert present_context(found, 64) == present_context(expected, 64)
