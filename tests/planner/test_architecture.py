"""Shapes and parameter counts are those of transformers' own models."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from longlora.errors import CheckpointError, ConfigError
from longlora.planner.architecture import FAMILIES, Architecture, find_architecture, parse_architecture
from longlora.planner.known_models import KnownModel, known_models
from longlora.rope.extend import present_context
from longlora.tiny import tiny_model_directory

MODELS = pytest.mark.parametrize("model", known_models(), ids=lambda model: model.name)
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
    values = copy.deepcopy(values)  # a configuration standardises positions in place
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counts = dict.fromkeys(("embeddings", "lm_head", "norms", "attention", "mlp", "vision"), 0)
    for name, parameter in model.named_parameters():
        path = name.split(".")
        if "vision_tower" in path or "multi_modal_projector" in path:
            kind = "vision"
        elif "embed_tokens" in path:
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
    if "layer_types" in vars(model.config):
        return model.config.layer_types.count("sliding_attention")
    return len(attentions) if model.config.to_dict().get("sliding_window") else 0


def linear_names(model: PreTrainedModel) -> set[str]:
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return {name.rpartition(".")[2] for name in linear}


@MODELS
def test_a_known_model_is_that_which_transformers_makes(model: KnownModel) -> None:
    """And it has the published total, where that is known, which no wrong shape is likely to have."""
    shape = parse_architecture(model.config, model.name)
    assert shape.num_parameters == (model.parameters or shape.num_parameters)
    config = AutoConfig.for_model(**copy.deepcopy(model.config)).get_text_config()
    assert shape.rope_parameters == config.rope_parameters
    assert shape.num_sliding_layers == list(getattr(config, "layer_types", None) or ()).count("sliding_attention")
    short = copy.deepcopy(model.config)  # all layers are alike, and two are quickly made
    short.get("text_config", short)["num_hidden_layers"] = 2
    made, counts = counted_by_transformers(short)
    shape = parse_architecture(short, model.name)
    assert shape.parameters._asdict() == counts
    assert {*shape.linear_names, "lm_head"} == linear_names(made)


def test_known_models_say_where_they_are_from_and_are_many() -> None:
    models = known_models()
    assert len(models) >= 25
    names = [name.lower() for model in models for name in (model.name, *model.hub_names)]
    assert len(set(names)) == len(names)
    assert all(model.source and all("/" in name for name in model.hub_names) for model in models)
    # A total is what a shape from memory is checked by: one of the two must be there.
    assert [model.name for model in models if not model.parameters and not model.unverified] == []


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [False, True])
def test_every_family_at_odd_sizes(model_type: str, tied: bool) -> None:
    values: dict[str, Any] = {**ODD, "model_type": model_type, "tie_word_embeddings": tied}
    if model_type in (
        "llama",
        "qwen3",
        "qwen3_moe",
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "olmo2",
        "olmo3",
        "gpt_oss",
    ):
        values["attention_bias"] = True
    if model_type in ("llama", "granite"):
        values["mlp_bias"] = True
    if model_type in ("mixtral", "gpt_oss"):
        values |= {"num_local_experts": 5, "num_experts_per_tok": 2}
    if model_type == "qwen3_moe":
        values |= {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
    if FAMILIES[model_type].sliding:
        values |= {"sliding_window": 16}
    if FAMILIES[model_type].sliding == "late":
        values |= {"use_sliding_window": True, "max_window_layers": 4}
    model, counts = counted_by_transformers(values)
    shape = parse_architecture(values, "odd")
    assert shape.parameters._asdict() == counts
    assert {*shape.linear_names, "lm_head"} == linear_names(model)
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    if FAMILIES[model_type].sliding:
        assert shape.num_sliding_layers == windows(model) > 0


def test_what_a_configuration_leaves_out() -> None:
    """Old files lack keys; the family's defaults are then those of transformers' configuration classes."""
    for model_type, family in FAMILIES.items():
        config = AutoConfig.for_model(model_type)
        assert bool(config.tie_word_embeddings) == family.tied, model_type
        values = config.to_dict() | {
            "rope_theta": (config.rope_parameters or {}).get("full_attention", {}).get("rope_theta")
        }
        assert {key: values[key] for key in family.defaults} == family.defaults, model_type
    old = {key: value for key, value in ODD.items() if key not in ("num_key_value_heads", "head_dim")}
    shape = parse_architecture({**old, "model_type": "llama"}, "old")
    assert (shape.num_kv_heads, shape.head_dim, shape.tied) == (6, 8, False)


def test_a_wrong_count_would_be_noticed() -> None:
    values = {**ODD, "model_type": "qwen2"}
    _, counts = counted_by_transformers(values)
    assert parse_architecture({**values, "model_type": "llama"}, "x").parameters._asdict() != counts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'.*known are llama"),
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


def test_a_model_that_reads_images_is_planned_by_its_language_model(tmp_path: Path) -> None:
    text = {**ODD, "model_type": "gemma3_text", "sliding_window": 16}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "vision_use_head": False}
    values = {"model_type": "gemma3", "text_config": text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(values))
    _, counts = counted_by_transformers(values)
    assert counts["vision"] > 0
    assert find_architecture(str(tmp_path)).parameters._asdict() == counts


def test_hub_names_in_any_case_share_their_facts() -> None:
    one, other = find_architecture("meta-llama/llama-2-7b-hf"), find_architecture("meta-llama/Llama-2-7b-chat-hf")
    assert isinstance(one, Architecture)
    assert one.parameters._asdict() == other.parameters._asdict()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "there is no model directory ./nowhere"),
        ("a/b/c", "there is no model directory a/b/c"),
        ("nobody/knows-this-model", "there is no such directory, and the hub failed with"),
        ("not a name", "there is no such directory, and the hub failed with"),
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
    with pytest.raises(CheckpointError, match="must contain a JSON object"):
        find_architecture(str(tmp_path))


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"rope_theta": 5.0e5}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
        ("qwen2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}}),
        ("phi3", {"original_max_position_embeddings": 16, "rope_scaling": None}),
        ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": None}),
        ("gemma3_text", {"rope_local_base_freq": 20_000.0, "rope_theta": 1e6}),
        ("olmo3", {"rope_theta": 5e5}),
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
    values = {key: value for key, value in values.items() if value is not None}
    expected = AutoConfig.for_model(**copy.deepcopy(values)).rope_parameters
    found = parse_architecture(values, "small").rope_parameters
    assert {key: expected[key] for key in found} == found
    assert present_context(found, 64) == present_context(expected, 64)
