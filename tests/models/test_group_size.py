"""The group size of a model: set, or of the environment, or a quarter of the context; never saved."""

import copy

import pytest
import torch
from tests.models.small_models import SIZES, assert_close, mistral, random_tokens, tiny_model, with_attention
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, PreTrainedModel

from longlora.errors import ConfigError
from longlora.models.grouping import Grouping, default_grouping, set_grouping
from longlora.models.registration import set_group_size


def trained_logits(model: PreTrainedModel, seed: int, **batch) -> torch.Tensor:
    return model.train()(random_tokens(seed, num_tokens=40), **batch).logits


def with_group_size(model: PreTrainedModel, group_size: int | None) -> PreTrainedModel:
    model = copy.deepcopy(model)
    set_group_size(model, group_size)
    return model


@pytest.mark.parametrize("group_size", [0, -4])
def test_refuses_a_group_without_tokens(model, group_size):
    with pytest.raises(ConfigError, match=f"at least 1 token, got {group_size}"):
        set_group_size(model, group_size)


def test_refuses_fewer_sink_tokens_than_none(model):
    with pytest.raises(ConfigError, match="sink_tokens must be 0 or more, got -1"):
        set_group_size(model, 8, sink_tokens=-1)


@pytest.mark.parametrize("num_tokens", [3, 11, 16, 40])
def test_the_default_group_is_a_quarter_of_the_context_whatever_the_row(model, num_tokens, seed):
    tokens = random_tokens(seed, num_tokens=num_tokens)
    fixed = with_group_size(model, SIZES["max_position_embeddings"] // 4).train()
    assert torch.equal(model.train()(tokens).logits, fixed(tokens).logits)


def test_the_default_group_counts_the_scaled_context(seed):
    """Configurations that were given YaRN by hand keep the shorter `max_position_embeddings`."""
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    model = tiny_model(seed, LlamaConfig(**SIZES, rope_parameters=yarn))
    assert torch.equal(trained_logits(model, seed), trained_logits(with_group_size(model, 32), seed))


def test_the_environment_sets_the_group_size_of_models_that_have_none(model, seed, monkeypatch):
    expected = trained_logits(with_group_size(model, 7), seed)
    default = trained_logits(model, seed)
    monkeypatch.setenv("LONGLORA_GROUP_SIZE", "7")
    assert torch.equal(trained_logits(model, seed), expected)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(default, expected)
    assert torch.equal(trained_logits(with_group_size(model, 16), seed), default)


def test_the_environment_sets_the_sink_tokens_of_models_that_have_none(model, seed, monkeypatch):
    default = trained_logits(model, seed)
    set_group_size(with_sinks := copy.deepcopy(model), SIZES["max_position_embeddings"] // 4, sink_tokens=2)
    monkeypatch.setenv("LONGLORA_SINK_TOKENS", "2")
    actual = trained_logits(model, seed)
    assert torch.equal(actual, trained_logits(with_sinks, seed))
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(default, actual)
    monkeypatch.setenv("LONGLORA_SINK_TOKENS", "-2")
    with pytest.raises(ConfigError, match="LONGLORA_SINK_TOKENS must be a whole number, at least 0, got '-2'"):
        trained_logits(model, seed)


def test_the_environment_takes_the_shift_away(model, seed, monkeypatch):
    default = trained_logits(model, seed)
    set_group_size(unshifted := copy.deepcopy(model), SIZES["max_position_embeddings"] // 4, shift=False)
    monkeypatch.setenv("LONGLORA_SHIFT", "1")
    assert torch.equal(trained_logits(model, seed), default)
    monkeypatch.setenv("LONGLORA_SHIFT", "0")
    actual = trained_logits(model, seed)
    assert torch.equal(actual, trained_logits(unshifted, seed))
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(default, actual)


def four_layers(seed: int) -> PreTrainedModel:
    return tiny_model(seed, LlamaConfig(**SIZES | {"num_hidden_layers": 4}))


@pytest.mark.parametrize("by", ["call", "environment"])
def test_one_layer_of_the_interval_trains_with_full_attention(seed, monkeypatch, by):
    model = four_layers(seed)
    groups = trained_logits(with_group_size(model, 16), seed)
    expected = with_group_size(model, 16)
    for number in (1, 3):
        set_grouping(expected.model.layers[number], Grouping(group_size=None))
    if by == "call":
        set_group_size(model, 16, full_attention_interval=2)
    else:
        monkeypatch.setenv("LONGLORA_FULL_ATTENTION_INTERVAL", "2")
    actual = trained_logits(model, seed)
    assert torch.equal(actual, trained_logits(expected, seed))
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(groups, actual)


def test_an_interval_counts_the_layers_without_a_window():
    config = LlamaConfig(**SIZES)
    config.layer_types = ["sliding_attention", "full_attention"] * 3
    assert Grouping(group_size=4, full_attention_interval=2).full_layers(config) == [3]
    assert Grouping(group_size=4, full_attention_interval=3).full_layers(config) == [5]
    assert Grouping(group_size=None, full_attention_interval=3).full_layers(config) == []
    with pytest.raises(ConfigError, match="full_attention_interval=4 exceeds the 3 layers of llama that could have"):
        Grouping(group_size=4, full_attention_interval=4).full_layers(config)


def test_refuses_an_interval_that_leaves_no_groups_or_no_full_attention(seed):
    model = four_layers(seed)
    with pytest.raises(ConfigError, match="full_attention_interval must be at least 2 layers, got 1"):
        set_group_size(model, 8, full_attention_interval=1)
    with pytest.raises(ConfigError, match="full_attention_interval=5 exceeds the 4 layers of llama"):
        set_group_size(model, 8, full_attention_interval=5)
    set_group_size(model, 8, full_attention_interval=2)
    for layer in model.model.layers:
        del layer.self_attn.layer_idx
    with pytest.raises(ConfigError, match="LlamaAttention does not know which layer it is"):
        model.train()(random_tokens(seed), use_cache=False)


@pytest.mark.parametrize("value", ["0", "-1", "many", "", "8.5"])
def test_refuses_an_environment_without_a_number_of_tokens(model, value, seed, monkeypatch):
    monkeypatch.setenv("LONGLORA_GROUP_SIZE", value)
    with pytest.raises(ConfigError, match=f"LONGLORA_GROUP_SIZE must be a whole number, at least 1, got '{value}'"):
        trained_logits(model, seed)


def test_a_model_that_does_not_say_its_context_has_no_default():
    with pytest.raises(ConfigError, match=r"bloom has no max_position_embeddings, .* call longlora\.set_group_size"):
        default_grouping(BloomConfig())


def test_the_group_size_is_not_saved(model, tmp_path, seed):
    untouched = model.config.to_dict()
    default = trained_logits(model, seed)
    set_group_size(model, 5)
    assert model.config.to_dict() == untouched
    grouped = trained_logits(model, seed)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="s2")
    assert torch.equal(trained_logits(loaded, seed), default)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(grouped, default)


def test_wrapped_models_take_a_group_size(model, seed):
    from peft import LoraConfig, get_peft_model

    expected = trained_logits(with_group_size(model, 5), seed)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    set_group_size(wrapped, 5)
    assert torch.equal(trained_logits(wrapped, seed), expected)


def test_refuses_settings_of_groups_without_groups_and_a_shift_that_is_no_bool(model, monkeypatch):
    for settings in ({"shift": False}, {"sink_tokens": 1}, {"full_attention_interval": 2}):
        with pytest.raises(ConfigError, match="group_size=None is full attention, without groups: leave out shift="):
            set_group_size(model, None, **settings)
    with pytest.raises(ConfigError, match="shift must be True or False, got 'false'"):
        set_group_size(model, 3, shift="false")
    monkeypatch.setenv("LONGLORA_SHIFT", "2")
    with pytest.raises(ConfigError, match="LONGLORA_SHIFT must be a whole number, 0 to 1, got '2'"):
        trained_logits(model, 0)


def test_refuses_a_model_that_attends_with_something_else(model):
    other = with_attention(model, "sdpa")
    with pytest.raises(
        ConfigError, match=r'LlamaForCausalLM uses the attention "sdpa".*set_attn_implementation\("s2"\)'
    ):
        set_group_size(other, 3)
    set_group_size(other, None)
    with pytest.raises(ConfigError, match="takes a transformers model, wrapped or not, got Linear"):
        set_group_size(torch.nn.Linear(1, 1), 3)


def test_refuses_a_model_without_a_layer_that_groups(seed):
    model = tiny_model(seed, mistral(sliding_window=4))
    message = r"no layer of mistral would train with S²-Attn: .*\(sliding_window=4\).* set sliding_window to null"
    with pytest.raises(ConfigError, match=message):
        set_group_size(model, 3)
    set_group_size(model, None)
    trained_logits(model, seed)
