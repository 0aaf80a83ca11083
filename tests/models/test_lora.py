"""LoRA+ trains what the paper says, in float32, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from longlora.errors import ConfigError
from longlora.models.lora import (
    add_adapter,
    attention_linear_names,
    embedding_and_norm_names,
    embedding_parameters,
    num_parameters,
    output_is_tied,
    trainable_parameters,
)


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


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("trainable", [("embed", "norm"), ("norm",), ()])
def test_every_parameter_is_counted_once(tied: bool, trainable: tuple[str, ...]) -> None:
    """PEFT keeps the originals of what is trained whole, the embedding's as well."""
    base = sum(parameter.numel() for parameter in llama(tied=tied).parameters())
    assert num_parameters(llama(tied=tied)) == base
    model = adapted(llama(tied=tied), trainable=trainable)
    assert num_parameters(model) == base + trainable_parameters(model)["lora"]


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


def test_embeddings_or_norms_alone() -> None:
    assert adapted(llama(), trainable=("embed",)).peft_config["default"].modules_to_save == ["embed_tokens"]
    counts = trainable_parameters(adapted(llama(), trainable=("norm",)))
    assert (counts["embeddings"], counts["norms"]) == (0, 5 * 32)
    with_tied = adapted(llama(tied=True), trainable=("norm",))
    assert output_is_tied(with_tied)
    assert trainable_parameters(with_tied)["embeddings"] == 0


def test_named_layers_get_an_update() -> None:
    model = adapted(llama(), target_modules=("q_proj", "layers.1.mlp.up_proj"))
    reached = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    prefix = "base_model.model.model.layers"
    assert reached == {f"{prefix}.0.self_attn.q_proj", f"{prefix}.1.self_attn.q_proj", f"{prefix}.1.mlp.up_proj"}
    assert adapted(llama(), target_modules=("lm_head",))  # not tied: a layer like others


@pytest.mark.parametrize(
    ("name", "tied", "expected"),
    [
        ("query", False, r"'query' names no linear layer of LlamaForCausalLM; its linear layers are down_proj, "),
        ("embed_tokens", False, "'embed_tokens' names no linear layer"),
        ("lm_head", True, r"'lm_head' is tied to the input embedding.*lora\.trainable: \[embed\]"),
    ],
)
def test_layers_that_cannot_get_one(name: str, tied: bool, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        adapted(llama(tied=tied), target_modules=("q_proj", name))


def test_an_output_embedding_that_is_trained_counts_as_an_embedding() -> None:
    model = adapted(llama(), train_output=True)
    assert trainable_parameters(model)["embeddings"] == 2 * 64 * 32
    assert [p.shape for p in embedding_parameters(model)] == [(64, 32), (64, 32)]
    tied = adapted(llama(tied=True), train_output=True)
    assert trainable_parameters(tied)["embeddings"] == 64 * 32
    assert len(embedding_parameters(tied)) == 1


class OddAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.router = nn.Linear(2, 2), nn.Identity()


class OddModel(nn.Module):
    """Names that mean one thing in attention and another outside, and a head with norm in its name."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.dense = OddAttention(), nn.Linear(2, 2)
        self.embedding, self.inner_norm, self.block = nn.Embedding(4, 2), nn.LayerNorm(2), nn.Module()
        self.block.norm, self.block.head = nn.Identity(), type("NormHead", (nn.Linear,), {})(2, 2)
        self.stack = nn.Module()
        self.stack.norm = nn.LayerNorm(2)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding


def test_names_that_would_reach_other_modules_are_written_whole() -> None:
    assert attention_linear_names(OddModel()) == ["attention.dense"]
    assert embedding_and_norm_names(OddModel()) == ["embedding", "inner_norm", "stack.norm"]


SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
USUAL = {"embed_tokens", "input_layernorm", "norm", "post_attention_layernorm"}
QKVO = {"q_proj", "k_proj", "v_proj", "o_proj"}
FAMILIES: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "llama": ({"num_key_value_heads": 2}, QKVO, USUAL),
    "mistral": ({"num_key_value_heads": 2}, QKVO, USUAL),
    "mixtral": ({"num_key_value_heads": 2, "num_local_experts": 2}, QKVO, USUAL),
    "qwen2": ({"num_key_value_heads": 2}, QKVO, USUAL),
    "qwen3": ({"num_key_value_heads": 2}, QKVO, USUAL | {"q_norm", "k_norm"}),
    "qwen3_moe": ({"num_key_value_heads": 2, "num_experts": 2}, QKVO, USUAL | {"q_norm", "k_norm"}),
    "phi3": ({}, {"qkv_proj", "o_proj"}, USUAL),
    "gemma": ({}, QKVO, USUAL),
    "gemma2": ({}, QKVO, USUAL | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}),
    "gemma3_text": (
        {},
        QKVO,
        USUAL | {"pre_feedforward_layernorm", "post_feedforward_layernorm", "q_norm", "k_norm"},
    ),
    "olmo2": ({}, QKVO, USUAL - {"input_layernorm"} | {"post_feedforward_layernorm", "q_norm", "k_norm"}),
    "granite": ({}, QKVO, USUAL),
    "glm4": ({}, QKVO, USUAL | {"post_self_attn_layernorm", "post_mlp_layernorm"}),
    "smollm3": ({}, QKVO, USUAL),
    "cohere": ({"use_qk_norm": True}, QKVO, USUAL - {"post_attention_layernorm"} | {"q_norm", "k_norm"}),
    "starcoder2": ({}, QKVO, USUAL),
    "gpt_neox": (
        {},
        {"query_key_value", "dense"},
        {"embed_in", "input_layernorm", "post_attention_layernorm", "final_layer_norm"},
    ),
    "gpt_oss": ({"num_local_experts": 2}, QKVO, USUAL),
    "falcon": (
        {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2},
        {"query_key_value", "dense"},
        {"word_embeddings", "ln_attn", "ln_mlp", "ln_f"},
    ),
    "llama4_text": ({}, QKVO, USUAL - {"norm"} | {"model.norm"}),  # its qk_norm has no weight
    "deepseek_v3": (
        {"first_k_dense_replace": 1},
        {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
        USUAL | {"q_a_layernorm", "kv_a_layernorm"},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_told_apart_rightly(family: str) -> None:
    settings, targets, whole = FAMILIES[family]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **settings))
    assert set(attention_linear_names(model)) == targets
    assert set(embedding_and_norm_names(model)) == whole
    tied = output_is_tied(model)
    adapted_model = adapted(model)
    trained = {name for name, parameter in adapted_model.named_parameters() if parameter.requires_grad}
    updated = {name.partition(".lora_")[0] for name in trained if ".lora_" in name}
    assert updated and all("attn" in name or "attention" in name for name in updated)
    assert not any("mlp" in name or "expert" in name or "router" in name for name in trained if ".lora_" in name)
    assert trainable_parameters(adapted_model)["other"] == 0
    assert output_is_tied(adapted_model) is tied


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # PEFT 0.20, of a base without a name
def test_a_tied_embedding_by_another_name_stays_tied_when_loaded_by_peft_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("falcon", **SIZES, tie_word_embeddings=True)
    base = AutoModelForCausalLM.from_config(config)
    base.save_pretrained(tmp_path / "base")
    model = adapted(base).eval()
    with torch.no_grad():
        embedding_parameters(model)[0].add_(0.1 * torch.randn(96, 64))
    model.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    assert output_is_tied(loaded)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits)
