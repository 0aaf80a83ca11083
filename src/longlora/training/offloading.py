"""What offloading takes from the host, said before the run."""

import logging
import os

import psutil
from transformers import PreTrainedConfig

from longlora.config import Recipe
from longlora.models.load import compute_dtype
from longlora.planner import GIB
from longlora.planner.memory import offloaded_bytes
from longlora.training.engines import world_size

logger = logging.getLogger("longlora")


def tell_offloading(recipe: Recipe, config: PreTrainedConfig) -> None:
    """Say how much of the host's memory offloaded layer inputs take, and warn where it is not there.

    TRL offloads whatever there is, and only logs that more than `virtual_memory_safe_pct=60` per cent of the host's
    memory is in use (trl 1.16): nothing is kept on the GPU instead, and a host without room ends the run.
    """
    if not recipe.gradient_checkpointing:
        return  # then it is not layers' inputs that leave, and how much depends on the model
    text_config = config.get_text_config()
    tokens = recipe.per_device_train_batch_size * recipe.context_length
    a_process = offloaded_bytes(
        num_layers=text_config.num_hidden_layers,
        layer_input_bytes=tokens * text_config.hidden_size * compute_dtype(recipe.dtype).itemsize,
    )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    needed, memory = processes * a_process, psutil.virtual_memory()
    logger.log(
        logging.WARNING if needed > memory.available else logging.INFO,
        "activation_offloading: layer inputs take %.1f GiB of the host's memory in %s process%s, and %.1f of %.1f GiB "
        "are free%s",
        needed / GIB,
        processes,
        "" if processes == 1 else "es",
        memory.available / GIB,
        memory.total / GIB,
        ": the run will end for want of memory; take a shorter context or a host with more"
        if needed > memory.available
        else "",
    )
