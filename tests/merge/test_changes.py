"""What an adapter changes is told without weights, or refused with the reason."""

import warnings
from typing import Any

import pytest
from peft import IA3Config, LoraConfig
from tests.merge.adapters import SIZES
from transformers import AutoConfig, PreTrainedConfig

from longlora.merge.changes import ShardMergeUnsupported, WeightChange, find_changes

LLAMA = {"num_key_value_heads": 2, **SIZES}
Q_PROJ = ["base_model.model.model.layers.1.self_attn.q_proj." + part for part in ("lora_A.weight", "lora_B.weight")]


def llama(**values: Any) -> PreTrainedConfig:
    return AutoConfig.for_model("llama", **{**LLAMA, **values})


def lora(**values: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["layers.1.self_attn.q_proj"], **values})


def test_low_rank_updates_and_whole_modules() -> None:
    changes = find_changes(llama(), lora(modules_to_save=["norm"]), [*Q_PROJ, *NORMS])
    assert changes.by_weight["model.layers.1.self_attn.q_proj.weight"] == WeightChange(
        tensors=(Q_PROJ[0], Q_PROJ[1]), scaling=1.5, transposed=False
    )
    assert changes.by_weight["model.norm.weight"] == WeightChange(tensors=("base_model.model.model.norm.weight",))
    assert len(changes.by_weight) == 1 + len(NORMS)
    assert type(changes.model.model).__name__ == "LlamaForCausalLM"
    assert (changes.tied_output, changes.unties) == (None, False)
    assert changes.model.shapes["model.embed_tokens.weight"] == (259, 36)


NORMS = [
    f"base_model.model.model.{name}.weight"
    for name in ("norm", *(f"layers.{n}.{place}_layernorm" for n in range(3) for place in ("input", "post_attention")))
]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"bias": "all"}, "bias=all"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    ],
)
def test_other_updates_are_named(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ShardMergeUnsupported, match=reason):
        find_changes(llama(), lora(**values), Q_PROJ)


def test_another_kind_of_adapter() -> None:
    with pytest.raises(ShardMergeUnsupported, match="of the type"):
        find_changes(llama(), IA3Config(target_modules=["q_proj"], feedforward_modules=[]), [])


def test_an_adapter_of_another_model() -> None:
    with pytest.raises(ShardMergeUnsupported, match="cannot be applied to a model without weights"):
        find_changes(llama(), lora(target_modules=["query_key_value"]), [])


@pytest.mark.parametrize(
    ("tensors", "reason"), [(Q_PROJ[:1], "lacks 1 tensors"), ([*Q_PROJ, "more"], "such as more")], ids=["less", "more"]
)
def test_a_file_that_does_not_fit(tensors: list[str], reason: str) -> None:
    with pytest.raises(ShardMergeUnsupported, match=reason):
        find_changes(llama(), lora(), tensors)


@pytest.mark.parametrize("kept", ["embed_tokens", "lm_head"])
def test_embeddings_that_are_kept_tied_are_found_under_either_name(kept: str) -> None:
    part = {"embed_tokens": "model.embed_tokens.weight", "lm_head": "lm_head.weight"}[kept]
    adapter = lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    changes = find_changes(llama(tie_word_embeddings=True), adapter, [*Q_PROJ, f"base_model.model.{part}"])
    whole = WeightChange(tensors=(f"base_model.model.{part}",))
    assert changes.by_weight["model.embed_tokens.weight"] == changes.by_weight["lm_head.weight"] == whole
    assert changes.tied_output == "lm_head.weight" and not changes.unties


def test_a_low_rank_update_of_embeddings_that_are_kept_tied() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT has advice for those who train so
        with pytest.raises(ShardMergeUnsupported, match="kept tied"):
            find_changes(
                llama(tie_word_embeddings=True), lora(target_modules=["embed_tokens"], ensure_weight_tying=True), []
            )
