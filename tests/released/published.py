"""Weights in the exact layouts that the paper's authors published, of a tiny model.

`get_trainable_weights.py` takes a consolidated `pytorch_model.bin`, names as PEFT 0.5 has them, apart: names with
"lora" lose `default.`, those with "embed" or "norm" lose the first 17 characters, `base_model.model.`. The merge is
that of `merge_lora_weights_and_save_hf_model.py`, with W + (alpha / r)·B·A written out by hand.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.merge.adapters import save_base
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

RANK, ALPHA, ROWS = 8, 16, 259
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
CONFIG = {
    "auto_mapping": None,
    "base_model_name_or_path": "/dataset/models/Llama-2-7b-hf",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": ALPHA,
    "lora_dropout": 0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": RANK,
    "revision": None,
    "target_modules": TARGETS,
    "task_type": "CAUSAL_LM",
}


@dataclass
class Original:
    """A base, and what the original's training left on it."""

    base: Path
    low_rank: dict[str, Tensor]
    """By names such as `model.layers.0.self_attn.q_proj.lora_A`."""

    whole: dict[str, Tensor]
    """Embeddings, of one row more than the base, and norms."""

    def merged(self, factor: float, *, with_whole: bool = True) -> PreTrainedModel:
        """The model that the original's merge makes, of the rows that the base has."""
        model = LlamaForCausalLM.from_pretrained(self.base)
        weights = model.state_dict()
        for name in {name.rpartition(".")[0] for name in self.low_rank}:
            update = self.low_rank[f"{name}.lora_B"] @ self.low_rank[f"{name}.lora_A"]
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + ALPHA / RANK * update
        if with_whole:
            weights |= {name: weight[:ROWS] for name, weight in self.whole.items()}
        if model.config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        return scaled(self.base, weights, factor)


def scaled(base: Path, weights: dict[str, Tensor], factor: float) -> PreTrainedModel:
    """These weights with positions divided by `factor`."""
    config = LlamaConfig.from_pretrained(base)
    config.rope_parameters = {"rope_type": "linear", "factor": factor, "rope_theta": 10000.0}
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    return model.eval()


def train_like_the_original(folder: Path, seed: int, tokenizer_from: Path, **config: Any) -> Original:
    """Random numbers where the original trains."""
    base = save_base(folder, "llama", seed, tokenizer_from, rms_norm_eps=1e-5, **config)
    weights = LlamaForCausalLM.from_pretrained(base).state_dict()
    low_rank: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name.split(".")[-2] in TARGETS:
            layer = name.removesuffix(".weight")
            low_rank[f"{layer}.lora_A"] = 0.1 * torch.randn(RANK, weight.shape[1])
            low_rank[f"{layer}.lora_B"] = 0.1 * torch.randn(weight.shape[0], RANK)
    whole = {name: w + 0.1 * torch.randn_like(w) for name, w in weights.items() if "embed" in name or "norm" in name}
    embedding = whole["model.embed_tokens.weight"]
    whole["model.embed_tokens.weight"] = torch.cat([embedding, embedding.mean(dim=0, keepdim=True)])  # [PAD]
    return Original(base=base, low_rank=low_rank, whole=whole)


def publish(original: Original, folder: Path, **config: Any) -> Path:
    """`adapter_config.json`, `adapter_model.bin`, `trainable_params.bin`."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    torch.save(
        {f"base_model.model.{name}.weight": weight for name, weight in original.low_rank.items()},
        folder / "adapter_model.bin",
    )
    torch.save(original.whole, folder / "trainable_params.bin")
    return folder


def publish_consolidated(original: Original, folder: Path) -> Path:
    """`pytorch_model.bin` as `zero_to_fp32.py` leaves it, frozen weights and all."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "target_modules": [TARGETS]}))
    frozen = LlamaForCausalLM.from_pretrained(original.base).state_dict()
    output = frozen["lm_head.weight"]
    frozen["lm_head.weight"] = torch.cat([output, output.mean(dim=0, keepdim=True)])
    everything = {f"base_model.model.{name}": weight for name, weight in {**frozen, **original.whole}.items()}
    everything |= {f"base_model.model.{name}.default.weight": weight for name, weight in original.low_rank.items()}
    torch.save(everything, folder / "pytorch_model.bin")
    return folder


def publish_model(original: Original, folder: Path, *, num_files: int = 1, rows: int = ROWS + 1, **config: Any) -> Path:
    """A full model as transformers 4.34 saved it: pickles, and positions in `rope_theta` and `rope_scaling`."""
    folder.mkdir(parents=True)
    values = json.loads((original.base / "config.json").read_text())
    values.pop("rope_parameters")
    values |= {"rope_theta": 10000.0, "rope_scaling": None, "vocab_size": rows, "transformers_version": "4.34.0"}
    (folder / "config.json").write_text(json.dumps({**values, **config}))
    weights = full_weights(original)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    names = list(weights)
    parts = [names[number::num_files] for number in range(num_files)] if num_files > 1 else [names]
    files = [f"pytorch_model-{n + 1:05}-of-{num_files:05}.bin" for n in range(num_files)]
    files = files if num_files > 1 else ["pytorch_model.bin"]
    for file, part in zip(files, parts, strict=True):
        torch.save({name: weights[name] for name in part}, folder / file)
    if num_files > 1:
        index = {
            "metadata": {"total_size": 0},
            "weight_map": {name: file for file, part in zip(files, parts, strict=True) for name in part},
        }
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for file in original.base.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def full_weights(original: Original) -> dict[str, Tensor]:
    """All weights after full fine-tuning: the base's, with the trained embeddings, norms and one more row."""
    weights = LlamaForCausalLM.from_pretrained(original.base).state_dict()
    output = weights["lm_head.weight"]
    weights["lm_head.weight"] = torch.cat([output, output.mean(dim=0, keepdim=True)])
    return {**weights, **original.whole}
