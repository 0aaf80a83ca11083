"""Differences between supported versions of other libraries, each with the condition that ends it."""

import os
from dataclasses import fields
from typing import Any

from accelerate.utils import DistributedType
from transformers import TrainingArguments


def checkpointing_arguments(enabled: bool) -> dict[str, Any]:
    """Name the training argument that recomputes activations; transformers 5.23 warns about the older name.

    Ends when transformers below 5.23 is no longer supported.
    """
    names = {field.name for field in fields(TrainingArguments)}
    return {"activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing": enabled}


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
