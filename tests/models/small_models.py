"""Tiny random models, batches, and what the tests of "s2" compare."""

import copy

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from longlora.models.deferred_mask import DeferredMask

TOLERANCE = 64 * torch.finfo(torch.float32).eps  # of a tensor's largest number
NUM_TOKENS = 12
PACKED_LENGTHS = (5, 1, 6)

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large, so that every token of the context moves the predictions
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_model(seed: int, config: PreTrainedConfig | None = None, *, attention: str = "s2") -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config or LlamaConfig(**SIZES), attn_implementation=attention)


def with_attention(model: PreTrainedModel, attention: str) -> PreTrainedModel:
    """Copy a model, mode and group size included, to compute its attention another way."""
    model = copy.deepcopy(model)
    model.set_attn_implementation(attention)
    return model


def random_tokens(seed: int, batch_size: int = 2, num_tokens: int = NUM_TOKENS) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, SIZES["vocab_size"], (batch_size, num_tokens), generator=generator)


def padding(*stretches: tuple[int, int]) -> Tensor:
    time = torch.arange(NUM_TOKENS)
    return torch.stack([(time >= first) & (time < last) for first, last in stretches]).long()


BATCHES = {
    "plain": {},
    "mask of ones": {"attention_mask": padding((0, 12), (0, 12))},
    "left padding": {"attention_mask": padding((3, 12), (0, 12))},
    "right padding": {"attention_mask": padding((0, 12), (0, 7))},
    "packed": {"position_ids": torch.cat([torch.arange(length) for length in PACKED_LENGTHS])[None]},
    "packed differently": {
        "position_ids": torch.stack(
            [torch.cat([torch.arange(7), torch.arange(5)]), torch.cat([torch.arange(2), torch.arange(10)])]
        )
    },
}


def real_tokens(batch: dict[str, Tensor]) -> Tensor:
    return batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()  # (B, T)


def logits_and_gradients(model: PreTrainedModel, **batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits of real tokens, and every parameter's gradient of a loss that looks at all of them."""
    model.zero_grad()
    logits = model(**batch).logits[real_tokens(batch)]  # (N, V)
    logits.logsumexp(dim=-1).sum().backward()
    return logits.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_close(actual: Tensor, expected: Tensor, message: str = "") -> None:
    allowed = TOLERANCE * max(1.0, expected.abs().max().item())
    error = (actual - expected).abs().max().item()
    assert error <= allowed, f"differs by {error:.2e}, {allowed:.2e} allowed: {message}"


def assert_same_training(actual: tuple[Tensor, dict], expected: tuple[Tensor, dict], message: str = "") -> None:
    assert_close(actual[0], expected[0], f"logits {message}")
    for name, gradient in expected[1].items():
        assert_close(actual[1][name], gradient, f"gradient of {name} {message}")


def mistral(**settings) -> MistralConfig:
    return MistralConfig(**SIZES, **settings)


def summed(parts: list[tuple[Tensor, dict]]) -> tuple[Tensor, dict]:
    gradients = {name: sum(part[1][name] for part in parts) for name in parts[0][1]}
    return torch.cat([part[0] for part in parts]), gradients


def deferred_mask(model: PreTrainedModel, **arguments) -> DeferredMask:
    defaults = {"attention_mask": None, "past_key_values": None, "position_ids": torch.arange(6)[None]}
    return create_causal_mask(model.config, torch.zeros(1, 6, 32), **(defaults | arguments))
