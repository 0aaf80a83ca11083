"""Workarounds for differences between supported library versions, each with the condition for its removal."""

import os
from dataclasses import fields
from typing import Any

from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedConfig, TrainingArguments


def checkpointing_arguments(enabled: bool) -> dict[str, Any]:
    """Return the training argument for activation checkpointing; transformers 5.23 warns about the older name.

    Remove when transformers below 5.23 is no longer supported.
    """
    names = {field.name for field in fields(TrainingArguments)}
    return {"activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing": enabled}


def ordinary_attention(config: PreTrainedConfig) -> str | None:
    """Return the attention to evaluate a model with if transformers' own choice may drop its softcap, else None.

    For Gemma 2, transformers 5.17 selects "sdpa", which has no softcap; 5.23 selects "eager". None leaves the choice to
    transformers. Remove when every supported version selects "eager".
    """
    return None if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None else "eager"


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Keep transformers from using `nn.DataParallel` over all visible GPUs in a single process.

    It splits inputs along their first axis, which packed rows do not allow. Remove when `TrainingArguments` accepts the
    number of GPUs, or no longer uses DataParallel.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def allow_fsdp_on_cpu(arguments: TrainingArguments) -> None:
    """Let accelerate use FSDP without GPUs: it requires them, although torch does not.

    Remove when accelerate's state supports FSDP for `MULTI_CPU` (1.15 does not).
    """
    state = arguments.distributed_state
    wants_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wants_fsdp and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def keep_to_fitting_kernels(model: nn.Module, *, trains: bool) -> None:
    """Disable the AVX512-BF16 kernel of bitsandbytes for 4-bit layers that it cannot compute.

    On processors with that instruction set, bitsandbytes repacks a layer on first use, which works only for whole
    blocks of inputs and multiples of 32 outputs, and breaks training. Other layers are dequantized as on other
    processors. Remove when bitsandbytes itself checks shapes and gradients (0.50 does not).
    """
    layers: list[Any] = [layer for layer in model.modules() if getattr(layer, "support_avx512bf16_for_cpu", False)]
    for layer in layers:
        state = layer.weight.quant_state
        outputs, inputs = state.shape
        if trains or outputs % 32 or inputs % state.blocksize:
            layer.support_avx512bf16_for_cpu = False
