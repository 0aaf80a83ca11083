"""Differences between supported versions of other libraries, each with the condition that ends it."""

import os
from dataclasses import fields
from typing import Any

from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedConfig, TrainingArguments


def checkpointing_arguments(enabled: bool) -> dict[str, Any]:
    """Name the training argument that recomputes activations; transformers 5.23 warns about the older name.

    Ends when transformers below 5.23 is no longer supported.
    """
    names = {field.name for field in fields(TrainingArguments)}
    return {"activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing": enabled}


def ordinary_attention(config: PreTrainedConfig) -> str | None:
    """Name the attention that a model evaluates with where transformers' own choice may drop its softcap.

    transformers 5.17 chooses "sdpa" for Gemma 2, which computes no softcap; 5.23 chooses "eager". None leaves it to
    transformers. Ends when no supported version makes the first choice.
    """
    return None if getattr(config.get_text_config(), "attn_logit_softcapping", None) is None else "eager"


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Keep transformers from spreading a single process over all visible GPUs by `nn.DataParallel`.

    Packed rows cannot be cut along their first axis as that does. Ends when `TrainingArguments` takes the number of
    GPUs, or DataParallel is gone.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def allow_fsdp_on_cpu(arguments: TrainingArguments) -> None:
    """Let accelerate shard a model whose processes have no GPU; it asks for one, and torch does not.

    Ends when accelerate's state takes FSDP for `MULTI_CPU` too (it does not in 1.15).
    """
    state = arguments.distributed_state
    wants_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wants_fsdp and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


def keep_to_fitting_kernels(model: nn.Module, *, trains: bool) -> None:
    """Keep bitsandbytes' 4-bit layers from its AVX512-BF16 kernel where that cannot compute them.

    On a processor that has it bitsandbytes packs a layer anew at its first use: only for whole blocks of inputs and
    groups of 32 outputs, and with no way back to training. Layers that do not fit are unpacked as on other processors.
    Ends when bitsandbytes looks at the shape and at gradients by itself (it does not in 0.50).
    """
    layers: list[Any] = [layer for layer in model.modules() if getattr(layer, "support_avx512bf16_for_cpu", False)]
    for layer in layers:
        state = layer.weight.quant_state
        outputs, inputs = state.shape
        if trains or outputs % 32 or inputs % state.blocksize:
            layer.support_avx512bf16_for_cpu = False
