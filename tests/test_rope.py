"""Positions are scaled from the model's true state."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from longlora.errors import ConfigError
from longlora.rope import extend_rope

DEFAULT = {"rope_type": "default", "rope_theta": 500_000.0}


def test_linear_interpolation_keeps_theta() -> None:
    extended = extend_rope(DEFAULT, base_context=4096, context_length=32768)
    assert extended.rope_parameters == {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 8.0}


def test_a_second_extension_multiplies_the_first() -> None:
    first = extend_rope(DEFAULT, base_context=4096, context_length=32768)
    second = extend_rope(first.rope_parameters, base_context=32768, context_length=65536)
    assert second.rope_parameters["factor"] == 16.0


def test_the_factor_is_the_exact_quotient() -> None:
    assert extend_rope(DEFAULT, base_context=4096, context_length=10000).rope_parameters["factor"] == 10000 / 4096


def test_the_extended_model_divides_its_positions() -> None:
    """Token m of the extended model has the angles that token m / 4 has in the base."""
    small = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    base = LlamaForCausalLM(LlamaConfig(**small))
    extension = extend_rope(base.config.rope_parameters, base_context=16, context_length=64)
    extended = LlamaForCausalLM(LlamaConfig(**{**small, "rope_parameters": extension.rope_parameters}))
    hidden = torch.zeros(1, 1, 16)
    for position in (0, 4, 40):
        (cos, sin), (base_cos, base_sin) = (
            model.model.rotary_emb(hidden, torch.tensor([[at]]))
            for model, at in ((extended, position), (base, position // 4))
        )
        torch.testing.assert_close((cos, sin), (base_cos, base_sin))


@pytest.mark.parametrize("context_length", [4096, 100])
def test_a_context_that_is_not_longer(context_length: int) -> None:
    with pytest.raises(ConfigError, match=f"context_length={context_length} must exceed the 4096 tokens"):
        extend_rope(DEFAULT, base_context=4096, context_length=context_length)


def test_positions_scaled_in_another_way_are_not_clobbered() -> None:
    with pytest.raises(ConfigError, match="already scaled by 'yarn'"):
        extend_rope({**DEFAULT, "rope_type": "yarn", "factor": 4.0}, base_context=4096, context_length=8192)


def test_an_unknown_method() -> None:
    with pytest.raises(ConfigError, match="'cubic' is not implemented"):
        extend_rope(DEFAULT, base_context=4096, context_length=8192, rope_type="cubic")
