"""LoRA+: low-rank updates with trainable embeddings and norms (the paper, section 3.3), as one PEFT adapter.

Embeddings and norms go through PEFT's `modules_to_save`, so that `adapter_model.safetensors` holds all that was trained
and `PeftModel.from_pretrained` loads it. In Llama-2-7B they are 131.3 of the 139.7 million trained parameters, and they
carry most of the quality (the paper, table 2: perplexity 11.44 without, 8.12 with).
"""

from collections.abc import Iterator
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from longlora.errors import ConfigError


def add_adapter(
    model: PreTrainedModel,
    *,
    train_embeddings_and_norms: bool,
    r: int,
    lora_alpha: float,
    lora_dropout: float,
    target_modules: Literal["attention", "all-linear"],
) -> PeftModel:
    """Wrap a model in a fresh adapter; what the adapter does not hold is frozen.

    Trained parameters are float32 whatever the model's dtype: at a learning rate of 2e-5 most updates of a bfloat16
    weight would round to nothing. Tied embeddings stay tied.

    Raises:
        ConfigError: the model has no linear layer inside an attention module.
    """
    targets = "all-linear" if target_modules == "all-linear" else attention_linear_names(model)
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=targets,
        modules_to_save=embedding_and_norm_names(model) if train_embeddings_and_norms else None,
        ensure_weight_tying=train_embeddings_and_norms and tied,
    )
    adapted = get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def attention_linear_names(model: nn.Module) -> list[str]:
    """Names of the linear layers that sit directly inside attention modules, such as `q_proj`.

    Raises:
        ConfigError: there are none.
    """
    names = {
        name
        for module in model.modules()
        if "attention" in type(module).__name__.lower()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    }
    if not names:
        raise ConfigError(
            f"no linear layers found in the attention of {type(model).__name__}; use lora.target_modules: all-linear"
        )
    return sorted(names)


def embedding_and_norm_names(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of the input embedding and of every norm, as PEFT's `modules_to_save` takes them."""
    embedding = model.get_input_embeddings()
    return sorted(
        {name.rpartition(".")[2] for name, module in model.named_modules() if module is embedding or _is_norm(module)}
    )


def trainable_parameters(model: nn.Module) -> dict[str, int]:
    """Count trained parameters by kind: `lora`, `embeddings`, `norms`, `other`, and their sum in `total`."""
    counts = dict.fromkeys(("lora", "embeddings", "norms", "other"), 0)
    for kind, parameter in _trained_by_kind(model):
        counts[kind] += parameter.numel()
    return {**counts, "total": sum(counts.values())}


def _trained_by_kind(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if "lora_" in f"{module_name}.{name}":
                yield "lora", parameter
            elif isinstance(module, nn.Embedding):
                yield "embeddings", parameter
            elif _is_norm(module):
                yield "norms", parameter
            else:
                yield "other", parameter


def _is_norm(module: nn.Module) -> bool:
    """Tell a normalisation layer: named one, and scaled by a vector of its own."""
    weight = module._parameters.get("weight")
    return "norm" in type(module).__name__.lower() and isinstance(weight, torch.Tensor) and weight.ndim == 1
