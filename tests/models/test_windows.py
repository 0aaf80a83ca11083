"""Layers that limit how far back they look by themselves go on doing so."""

import pytest
import torch
from tests.models.small_models import (
    BATCHES,
    SIZES,
    assert_close,
    assert_same_training,
    logits_and_gradients,
    mistral,
    padding,
    random_tokens,
    tiny_model,
    with_attention,
)
from transformers import Llama4TextConfig, Qwen2Config

from longlora.models import deferred_mask
from longlora.models.registration import set_group_size


def llama4() -> Llama4TextConfig:
    layers = ["chunked_attention", "chunked_attention"]
    return Llama4TextConfig(
        **SIZES, head_dim=8, layer_types=layers, attention_chunk_size=5, num_local_experts=2, intermediate_size_mlp=48
    )


@pytest.mark.parametrize("name", ["plain", "left padding", "packed"])
def test_a_layer_with_a_sliding_window_keeps_its_attention_in_training(name, seed):
    model = tiny_model(seed, mistral(sliding_window=4)).train()
    set_group_size(model, None)
    batch = {"input_ids": random_tokens(seed), "use_cache": False, **BATCHES[name]}
    actual = logits_and_gradients(model, **batch)
    expected = logits_and_gradients(with_attention(model, "sdpa"), **batch)
    assert_same_training(actual, expected, f"seed {seed}")


@pytest.mark.parametrize("config", [mistral(sliding_window=4), llama4()], ids=["sliding window", "chunks"])
def test_a_layer_with_a_window_trains_without_a_mask_of_queries_by_keys(config, seed, monkeypatch):
    model = tiny_model(seed, config).train()
    set_group_size(model, None)
    tokens = random_tokens(seed)
    expected = logits_and_gradients(with_attention(model, "sdpa"), input_ids=tokens, use_cache=False)
    monkeypatch.setattr(deferred_mask, "sdpa_mask", None)
    actual = logits_and_gradients(model, input_ids=tokens, use_cache=False)
    assert_same_training(actual, expected, f"seed {seed}")


@torch.no_grad()
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_prompt_longer_than_the_window_generates_as_with_sdpa(cache, seed):
    model = tiny_model(seed, mistral(sliding_window=4))
    prompt = {"input_ids": random_tokens(seed), "attention_mask": padding((4, 12), (0, 12))}
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    expected, actual = (
        with_attention(model, attention).eval().generate(**prompt, **settings) for attention in ("sdpa", "s2")
    )
    assert torch.equal(actual, expected)


def test_of_layers_with_and_without_a_window_only_the_latter_train_with_groups(seed):
    layers = ["sliding_attention", "full_attention"]
    config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, layer_types=layers)
    model = tiny_model(seed, config).train()
    tokens = random_tokens(seed)
    ordinary = with_attention(model, "sdpa")(tokens, output_hidden_states=True)
    set_group_size(model, 3)
    grouped = model(tokens, output_hidden_states=True)
    assert_close(grouped.hidden_states[1], ordinary.hidden_states[1])
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(grouped.logits, ordinary.logits)
