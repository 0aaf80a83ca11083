"""The probe tells which layers would train with S²-Attn, before any weights are loaded."""

import copy

import pytest
import torch
from tests.register.models import SIZES, mistral
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.modeling_outputs import CausalLMOutput

from longlora import register
from longlora.errors import ConfigError
from longlora.probe import check_s2_reaches


class OwnAttentionConfig(PreTrainedConfig):
    """Configures a model that computes attention by itself."""

    model_type = "own-attention"


class OwnAttention(PreTrainedModel):
    """Computes attention by itself."""

    config_class = OwnAttentionConfig
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: OwnAttentionConfig) -> None:
        super().__init__(config)
        self.embedding = torch.nn.Embedding(8, 4)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool | None = None):
        hidden = self.embedding(input_ids)
        hidden = torch.nn.functional.scaled_dot_product_attention(hidden, hidden, hidden, is_causal=True)
        return CausalLMOutput(logits=hidden)


class BrokenConfig(PreTrainedConfig):
    """Configures a model that cannot run."""

    model_type = "broken"


class Broken(OwnAttention):
    """Fails at its first step."""

    config_class = BrokenConfig

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool | None = None):
        return 1 / 0


AutoModelForCausalLM.register(OwnAttentionConfig, OwnAttention)
AutoModelForCausalLM.register(BrokenConfig, Broken)

PER_HEAD = {"head_dim": 8}
REACHED = [
    LlamaConfig(**SIZES),
    mistral(sliding_window=None),
    Qwen3Config(**SIZES, **PER_HEAD),
    MixtralConfig(**SIZES, num_local_experts=4, sliding_window=None),
    Gemma2Config(**SIZES, **PER_HEAD),  # softcap
    Gemma3TextConfig(**SIZES, **PER_HEAD, layer_types=["sliding_attention", "full_attention"]),  # window of 4096
]


@pytest.mark.parametrize("config", REACHED, ids=[config.model_type for config in REACHED])
def test_architectures_that_train_with_s2_pass(config):
    before = copy.deepcopy(config.to_dict())
    attention = config._attn_implementation
    check_s2_reaches(config)
    assert config.to_dict() == before
    assert config._attn_implementation == attention


FALCON = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
REFUSED = [
    (OwnAttentionConfig(), "no layer of own-attention would train with S²-Attn"),
    (mistral(sliding_window=4), "no layer of mistral would train with S²-Attn"),
    (mistral(sliding_window=4096), "no layer of mistral would train with S²-Attn"),
    (FalconConfig(**FALCON), "no layer of falcon would train with S²-Attn: its attention does not go through"),
    (BrokenConfig(), r"broken does not run with attn_implementation=\"s2\" \(ZeroDivisionError: division by zero\)"),
    (LlamaConfig(**SIZES, attention_dropout=0.1), "no attention dropout"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_architectures_that_would_not_train_with_s2_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        check_s2_reaches(config)
