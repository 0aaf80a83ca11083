"""Tiny random models of several families, saved in several files, and adapters of random numbers on them."""

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from longlora.models.lora import add_adapter

SIZES: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2},
    "qwen3 tied": {"model_type": "qwen3", "num_key_value_heads": 3, "head_dim": 8, "tie_word_embeddings": True},
    "qwen3 untied": {"model_type": "qwen3", "num_key_value_heads": 3, "head_dim": 8, "tie_word_embeddings": False},
    "gemma2": {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16},
    "gpt_neox": {"model_type": "gpt_neox"},
    "gpt2": {"model_type": "gpt2"},
}


def save_base(folder: Path, family: str, seed: int, tokenizer_from: Path, *, shard: str = "40KB", **more: Any) -> Path:
    """Write a random model in files of at most `shard`, with a tokenizer and a generation config."""
    torch.manual_seed(seed)
    values = {**SIZES, **FAMILIES[family], **more}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    model.generation_config.temperature = 0.625
    model.generation_config.do_sample = True
    model.save_pretrained(folder, max_shard_size=shard)
    for file in tokenizer_from.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def longlora_adapter(base: Path, folder: Path) -> PeftModel:
    """LoRA on attention, with embeddings and norms; and its values in memory."""
    model = add_adapter(
        load(base), trainable=("embed", "norm"), r=4, lora_alpha=8, lora_dropout=0.0, target_modules="attention"
    )
    return save_random(model, folder)


def peft_adapter(base: Path, folder: Path, **config: Any) -> PeftModel:
    """An adapter of PEFT's alone."""
    return save_random(get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **config)), folder)


@torch.no_grad()
def save_random(model: PeftModel, folder: Path) -> PeftModel:
    """Move all that is trained away from where it began, and save."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder, save_embedding_layers=False)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, seed: int) -> torch.Tensor:
    tokens = torch.randint(259, (2, 53), generator=torch.Generator().manual_seed(seed))
    device = next(model.parameters()).device
    return model(input_ids=tokens.to(device), use_cache=False).logits.float().cpu()
