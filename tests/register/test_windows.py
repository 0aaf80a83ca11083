"""Layers that limit how far back they look by themselves go on doing so."""

import pytest
import torch
from tests.register.models import (
    BATCHES,
    SIZES,
    assert_close,
    logits_and_gradients,
    mistral,
    random_tokens,
    tiny_model,
    with_attention,
)
from transformers import Qwen2Config

from longlora.register import set_group_size


@pytest.mark.parametrize("name", ["plain", "left padding", "packed"])
def test_a_layer_with_a_sliding_window_keeps_its_attention_in_training(name, seed):
    model = tiny_model(seed, mistral(sliding_window=4)).train()
    set_group_size(model, 3)
    batch = {"input_ids": random_tokens(seed), "use_cache": False, **BATCHES[name]}
    logits, gradients = logits_and_gradients(model, **batch)
    expected_logits, expected_gradients = logits_and_gradients(with_attention(model, "sdpa"), **batch)
    assert torch.equal(logits, expected_logits)
    assert all(torch.equal(gradients[name], gradient) for name, gradient in expected_gradients.items())


def test_of_layers_with_and_without_a_window_only_the_latter_train_with_groups(seed):
    layers = ["sliding_attention", "full_attention"]
    config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, layer_types=layers)
    model = tiny_model(seed, config).train()
    tokens = random_tokens(seed)
    ordinary = with_attention(model, "sdpa")(tokens, output_hidden_states=True)
    set_group_size(model, 3)
    grouped = model(tokens, output_hidden_states=True)
    assert torch.equal(grouped.hidden_states[1], ordinary.hidden_states[1])
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(grouped.logits, ordinary.logits)
