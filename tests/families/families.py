"""Tiny configurations of the families that longlora promises to train, and what each is known to have."""

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

VOCABULARY = 259  # of the tests' tokenizer of bytes
NUM_LAYERS = 2
FULL, SLIDING = "full_attention", "sliding_attention"

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large, so that every token of the context moves the predictions
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

LLAMA_TARGETS = ("k_proj", "o_proj", "q_proj", "v_proj")
LLAMA_SAVED = ("embed_tokens", "input_layernorm", "norm", "post_attention_layernorm")
QWEN3_SAVED = tuple(sorted((*LLAMA_SAVED, "k_norm", "q_norm")))
GEMMA2_SAVED = tuple(sorted((*LLAMA_SAVED, "post_feedforward_layernorm", "pre_feedforward_layernorm")))


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model type, how to make a tiny one, and the layers that LoRA+ must find in it."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Configuration besides `SIZES`."""

    targets: tuple[str, ...] = LLAMA_TARGETS
    """Last parts of the names of the linear layers in attention."""

    saved: tuple[str, ...] = LLAMA_SAVED
    """Names of the embedding and the norms, whole where the last part would reach more (norms without a weight)."""

    one_layer: dict[str, Any] = field(default_factory=dict)
    """Configuration of a model of one layer of full attention, where it takes more than `num_hidden_layers`."""

    windowed_layers: int = 0
    """How many of the layers have a window of their own."""

    def config(self, **settings: Any) -> PreTrainedConfig:
        """Make the configuration anew, since loading and training write into it."""
        return AutoConfig.for_model(self.model_type, **(SIZES | self.settings | settings))

    def config_of_one_layer(self) -> PreTrainedConfig:
        """Make the configuration of a model whose reach in training is that of one S² layer."""
        return self.config(num_hidden_layers=1, **self.one_layer)


MIXED_LAYERS = {"sliding_window": 8, "layer_types": [SLIDING, FULL]}
ONE_FULL_LAYER = {"layer_types": [FULL]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

FAMILIES = [
    Family(model_type="llama"),
    Family(model_type="mistral", settings={"sliding_window": None}),
    Family(model_type="mixtral", settings={"num_local_experts": 4, "sliding_window": None}),
    Family(model_type="qwen2"),
    Family(model_type="qwen3", settings={"head_dim": 8}, saved=QWEN3_SAVED),
    Family(model_type="qwen3_moe", settings={"head_dim": 8, **EXPERTS}, saved=QWEN3_SAVED),
    Family(model_type="phi3", targets=("o_proj", "qkv_proj")),
    Family(model_type="gemma", settings={"head_dim": 8}),
    Family(
        model_type="gemma2",
        settings={"head_dim": 8, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8, **MIXED_LAYERS},
        saved=GEMMA2_SAVED,
        one_layer=ONE_FULL_LAYER,
        windowed_layers=1,
    ),
    Family(
        model_type="gemma3_text",
        settings={"head_dim": 8, "query_pre_attn_scalar": 8, **MIXED_LAYERS},
        saved=tuple(sorted((*GEMMA2_SAVED, "k_norm", "q_norm"))),
        one_layer=ONE_FULL_LAYER,
        windowed_layers=1,
    ),
    Family(
        model_type="olmo2",
        saved=("embed_tokens", "k_norm", "norm", "post_attention_layernorm", "post_feedforward_layernorm", "q_norm"),
    ),
    Family(model_type="granite", settings={"attention_multiplier": 0.7}),
    Family(
        model_type="glm4",
        settings={"head_dim": 8},
        saved=tuple(sorted((*LLAMA_SAVED, "post_mlp_layernorm", "post_self_attn_layernorm"))),
    ),
    Family(model_type="smollm3", settings={"no_rope_layer_interval": 2}),
    Family(model_type="cohere", saved=("embed_tokens", "input_layernorm", "norm")),
    Family(model_type="starcoder2", settings={"sliding_window": None}),
    Family(
        model_type="gpt_neox",
        settings={"hidden_dropout": 0.0, "attention_dropout": 0.0},
        targets=("dense", "query_key_value"),
        saved=("embed_in", "final_layer_norm", "input_layernorm", "post_attention_layernorm"),
    ),
    Family(
        model_type="gpt_oss",
        settings={"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, **MIXED_LAYERS},
        one_layer=ONE_FULL_LAYER,
        windowed_layers=1,
    ),
    # Not promised one by one, but each has something that none of the above has.
    Family(
        model_type="olmo3",
        settings=MIXED_LAYERS,
        one_layer=ONE_FULL_LAYER,
        windowed_layers=1,
        saved=("embed_tokens", "k_norm", "norm", "post_attention_layernorm", "post_feedforward_layernorm", "q_norm"),
    ),
    Family(
        model_type="cohere2",
        settings=MIXED_LAYERS,
        one_layer=ONE_FULL_LAYER,
        windowed_layers=1,
        saved=("embed_tokens", "input_layernorm", "norm"),
    ),
    Family(
        model_type="phi",
        settings={"num_key_value_heads": 4},
        targets=("dense", "k_proj", "q_proj", "v_proj"),
        saved=("embed_tokens", "final_layernorm", "input_layernorm"),
    ),
    Family(model_type="stablelm"),
    Family(
        model_type="granite_swa",
        settings={"attention_multiplier": 0.7, **MIXED_LAYERS},
        one_layer=ONE_FULL_LAYER,
        windowed_layers=1,
    ),
    Family(
        model_type="deepseek_v3",
        settings={
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 16,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
        },
        targets=("kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"),
        saved=tuple(sorted((*LLAMA_SAVED, "kv_a_layernorm", "q_a_layernorm"))),
    ),
    Family(model_type="seed_oss", settings={"attention_dropout": 0.0, "residual_dropout": 0.0, "head_dim": 8}),
    Family(
        model_type="llama4_text",
        settings={
            "head_dim": 8,
            "num_local_experts": 2,
            "attention_chunk_size": 8,
            "layer_types": ["chunked_attention", FULL],
            "intermediate_size_mlp": 48,
        },
        saved=("embed_tokens", "input_layernorm", "model.norm", "post_attention_layernorm"),
        one_layer=ONE_FULL_LAYER,
        windowed_layers=1,
    ),
    Family(
        model_type="qwen3_next",
        settings={
            "head_dim": 8,
            **EXPERTS,
            "layer_types": ["linear_attention", FULL],
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 16,
        },
        one_layer=ONE_FULL_LAYER,
        saved=QWEN3_SAVED,
    ),
]
