"""LoRA+ trains what the paper says, in float32, and nothing else."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from longlora.errors import ConfigError
from longlora.lora import add_adapter, attention_linear_names, embedding_and_norm_names, trainable_parameters


def llama(*, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            pad_token_id=None,
        )
    )


def adapted(model: LlamaForCausalLM, **changes: Any) -> PeftModel:
    settings = {"trainable": ("embed", "norm"), "r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
    return add_adapter(model, **{**settings, "target_modules": "attention", **changes})


def test_modules_are_found_in_the_model() -> None:
    assert attention_linear_names(llama()) == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert embedding_and_norm_names(llama()) == [
        "embed_tokens",
        "input_layernorm",
        "norm",
        "post_attention_layernorm",
    ]


def test_trained_parameters_are_counted_by_kind() -> None:
    lora = 2 * 4 * ((32 + 32) + (32 + 16) + (32 + 16) + (32 + 32))
    expected = {"lora": lora, "embeddings": 64 * 32, "norms": 5 * 32, "other": 0}
    assert trainable_parameters(adapted(llama())) == {**expected, "total": sum(expected.values())}
    plain = adapted(llama(), trainable=())
    assert trainable_parameters(plain) == {"lora": lora, "embeddings": 0, "norms": 0, "other": 0, "total": lora}


def test_all_linear_reaches_the_feed_forward() -> None:
    names = {name for name, p in adapted(llama(), target_modules="all-linear").named_parameters() if p.requires_grad}
    assert any("mlp.down_proj.lora_A" in name for name in names)
    assert not any("lm_head" in name for name in names)


def test_trained_parameters_are_float32_in_a_bfloat16_model() -> None:
    model = adapted(llama().bfloat16())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied_and_untied_ones_untied(tied: bool) -> None:
    """A change of the input embedding moves the logits of every token if tied, of that token's followers if not."""
    model = adapted(llama(tied=tied)).eval()
    tokens = torch.tensor([[1, 2, 3]])
    before = model(input_ids=tokens).logits
    with torch.no_grad():
        model.get_input_embeddings().weight[9] += 1.0
    changed = (model(input_ids=tokens).logits - before).abs().amax(dim=(0, 1)) > 0
    assert changed.nonzero().flatten().tolist() == ([9] if tied else [])


def test_a_step_changes_lora_embeddings_and_norms_only() -> None:
    model = adapted(llama())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # the A matrices move only once B has
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_model_without_attention_layers() -> None:
    with pytest.raises(ConfigError, match=r"use lora\.target_modules: all-linear"):
        attention_linear_names(nn.Sequential(nn.Linear(2, 2)))
