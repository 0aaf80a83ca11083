"""Merged file by file, a model has the base's files, PEFT's weights and the adapter's logits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.merge.adapters import FAMILIES, load, logits, longlora_adapter, peft_adapter, save_base
from transformers import GenerationConfig

from longlora.errors import CheckpointError
from longlora.merge import merge_adapter
from longlora.models.shards import model_folder

IN_MEMORY = "merging the whole model in memory"
ROPE_FAMILIES = [name for name in FAMILIES if name != "gpt2"]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """By the names of the model; GPT-NeoX stores its output under another one."""
    stored = {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}
    return {name.replace("embed_out", "lm_head"): weight for name, weight in stored.items()}


@pytest.mark.parametrize("family", ROPE_FAMILIES)
def test_merged_adapter_and_reloaded_are_the_same(
    family: str, base_model: Path, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_base(tmp_path / "base", family, seed, base_model)
    adapter = longlora_adapter(base, tmp_path / "adapter")
    report = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert IN_MEMORY not in caplog.text and report.dtype == torch.float32
    merged, expected = load(tmp_path / "merged"), logits(adapter, seed)
    torch.testing.assert_close(logits(merged, seed), expected, atol=1e-4, rtol=1e-5)
    assert (logits(load(base), seed) - expected).abs().max() > 1e-2  # 5.9 ± 1.1 in 100 cases
    assert report.largest_difference < 1e-4 * max(1.0, report.largest_logit)

    inside = adapter.merge_and_unload()
    torch.testing.assert_close(logits(inside, seed), expected, atol=1e-4, rtol=1e-5)
    for name, weight in weights_of(tmp_path / "merged").items():
        torch.testing.assert_close(weight, inside.state_dict()[name], atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("family", ROPE_FAMILIES)
def test_bfloat16_is_the_sum_rounded_once(family: str, base_model: Path, tmp_path: Path, seed: int) -> None:
    base = save_base(tmp_path / "base", family, seed, base_model)
    adapter = longlora_adapter(base, tmp_path / "adapter")
    report = merge_adapter(tmp_path / "adapter", tmp_path / "merged", dtype="bfloat16")
    assert report.dtype == torch.bfloat16
    assert report.relative_difference < 0.1  # 0.016 in 100 cases; 5 deviations of the logarithm
    expected = adapter.merge_and_unload().state_dict()
    for name, weight in weights_of(tmp_path / "merged").items():
        # Rounding once is off by half a unit in the last of 8 bits at most: 2^-8 of the value.
        difference = (weight.float() - expected[name]).abs()
        assert weight.dtype == torch.bfloat16
        assert bool((difference <= 2.0**-8 * expected[name].abs() * 1.001 + 1e-7).all()), name


def test_weights_stay_in_the_type_that_each_has_in_the_base(base_model: Path, tmp_path: Path, seed: int) -> None:
    base = save_base(tmp_path / "base", "qwen3 untied", seed, base_model)
    longlora_adapter(base, tmp_path / "adapter")
    for file in base.glob("*.safetensors"):
        kept = {name: w if "norm" in name else w.bfloat16() for name, w in load_file(file).items()}
        save_file(kept, file, metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | {"dtype": "bfloat16"}
    (base / "config.json").write_text(json.dumps(config))
    assert merge_adapter(tmp_path / "adapter", tmp_path / "merged").dtype == torch.bfloat16
    types = {("norm" in name, weight.dtype) for name, weight in weights_of(tmp_path / "merged").items()}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}


def test_the_files_are_cut_as_the_bases_are(base_model: Path, tmp_path: Path, seed: int) -> None:
    base = save_base(tmp_path / "base", "llama", seed, base_model)
    longlora_adapter(base, tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    index, of_base = (
        json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (tmp_path / "merged", base)
    )
    assert len(set(index["weight_map"].values())) > 3
    assert index["weight_map"] == of_base["weight_map"]
    assert index["metadata"]["total_size"] == of_base["metadata"]["total_size"]
    assert GenerationConfig.from_pretrained(tmp_path / "merged").temperature == 0.625


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": "all-linear"},
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 7},
            "alpha_pattern": {"down_proj": 3},
        },
        {"r": 3, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    ],
    ids=["rslora", "patterns", "one layer"],
)
def test_scales_and_patterns_of_peft(
    config: dict[str, Any], base_model: Path, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_base(tmp_path / "base", "llama", seed, base_model)
    adapter = peft_adapter(base, tmp_path / "adapter", **config)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert IN_MEMORY not in caplog.text
    torch.testing.assert_close(logits(load(tmp_path / "merged"), seed), logits(adapter, seed), atol=1e-4, rtol=1e-5)


def test_layers_that_keep_their_weights_transposed(
    base_model: Path, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_base(tmp_path / "base", "gpt2", seed, base_model)
    adapter = peft_adapter(base, tmp_path / "adapter", r=3, target_modules=["c_attn"], fan_in_fan_out=True)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert IN_MEMORY not in caplog.text
    torch.testing.assert_close(logits(load(tmp_path / "merged"), seed), logits(adapter, seed), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["whole input", "whole output", "low rank"],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
def test_an_adapter_of_one_embedding_unties_them(
    config: dict[str, Any], base_model: Path, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_base(tmp_path / "base", "qwen3 tied", seed, base_model)
    adapter = peft_adapter(base, tmp_path / "adapter", r=3, **config)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert IN_MEMORY not in caplog.text
    merged = load(tmp_path / "merged")
    assert merged.config.tie_word_embeddings is False
    torch.testing.assert_close(logits(merged, seed), logits(adapter, seed), atol=1e-4, rtol=1e-5)


def test_dora_is_merged_in_memory_and_said(
    base_model: Path, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_base(tmp_path / "base", "llama", seed, base_model)
    adapter = peft_adapter(base, tmp_path / "adapter", r=3, target_modules=["q_proj"], use_dora=True)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert IN_MEMORY in caplog.text and "use_dora" in caplog.text
    torch.testing.assert_close(logits(load(tmp_path / "merged"), seed), logits(adapter, seed), atol=1e-4, rtol=1e-5)


def test_a_base_of_pickles_is_merged_in_memory(
    base_model: Path, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_base(tmp_path / "base", "llama", seed, base_model, shard="1GB")
    adapter = longlora_adapter(base, tmp_path / "adapter")
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    assert model_folder(str(base)) is None
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert IN_MEMORY in caplog.text and "has no safetensors" in caplog.text
    torch.testing.assert_close(logits(load(tmp_path / "merged"), seed), logits(adapter, seed), atol=1e-4, rtol=1e-5)


def test_a_base_with_other_names_is_merged_in_memory(
    base_model: Path, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_base(tmp_path / "base", "llama", seed, base_model, shard="1GB", tie_word_embeddings=True)
    longlora_adapter(base, tmp_path / "adapter")
    renamed = {name.removeprefix("model."): w for name, w in load_file(base / "model.safetensors").items()}
    save_file(renamed, base / "model.safetensors", metadata={"format": "pt"})  # a bare LlamaModel's names
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert IN_MEMORY in caplog.text and "under another name" in caplog.text


def test_without_the_comparison(base_model: Path, tmp_path: Path, seed: int) -> None:
    base = save_base(tmp_path / "base", "llama", seed, base_model)
    longlora_adapter(base, tmp_path / "adapter")
    report = merge_adapter(tmp_path / "adapter", tmp_path / "merged", check=False)
    assert report.probe_tokens == 0
    assert report.largest_difference != report.largest_difference and report.largest_logit != report.largest_logit


def test_damaged_bases(base_model: Path, tmp_path: Path, seed: int) -> None:
    base = save_base(tmp_path / "base", "llama", seed, base_model)
    longlora_adapter(base, tmp_path / "adapter")
    first, second, *_ = sorted(base.glob("*.safetensors"))
    whole = shutil.copy(first, tmp_path / "whole")

    first.write_bytes(first.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=r"cannot be read .*download or copy it again"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    shutil.copy(second, first)
    with pytest.raises(CheckpointError, match="is in none of its files"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    first.unlink()
    with pytest.raises(CheckpointError, match="is missing; download it again"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    shutil.copy(whole, first)
    (base / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"every file of model\.safetensors\.index\.json is missing"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_without_its_resized_output(base_model: Path, tmp_path: Path, seed: int) -> None:
    """`longlora.json` says that rows were added, and the adapter holds them for the input only."""
    base = save_base(tmp_path / "base", "qwen3 untied", seed, base_model)
    larger = save_base(tmp_path / "larger", "qwen3 untied", seed, base_model, vocab_size=261)
    longlora_adapter(larger, tmp_path / "adapter")
    extension = {"base_model": str(base), "base_context": 64, "context_length": 64, "vocabulary_rows": 261}
    rope = load(base).config.rope_parameters
    (tmp_path / "adapter" / "longlora.json").write_text(json.dumps(extension | {"rope_parameters": rope}))
    with pytest.raises(CheckpointError, match="saved without its output embedding"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")


def test_an_adapters_configuration_that_is_damaged(base_model: Path, tmp_path: Path, seed: int) -> None:
    base = save_base(tmp_path / "base", "llama", seed, base_model)
    longlora_adapter(base, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="configuration of the adapter"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight", "both"])
def test_a_base_that_stores_tied_embeddings_its_own_way(
    kept: str, base_model: Path, tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_base(tmp_path / "base", "qwen3 tied", seed, base_model, shard="1GB")
    weights = load_file(base / "model.safetensors")
    embedding = weights.pop("model.embed_tokens.weight")
    names = ["model.embed_tokens.weight", "lm_head.weight"] if kept == "both" else [kept]
    weights |= {name: embedding.clone() for name in names}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    adapter = peft_adapter(base, tmp_path / "adapter", r=3, target_modules=["q_proj"])
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert IN_MEMORY not in caplog.text
    merged = load(tmp_path / "merged")
    assert merged.config.tie_word_embeddings is True
    torch.testing.assert_close(logits(merged, seed), logits(adapter, seed), atol=1e-4, rtol=1e-5)
