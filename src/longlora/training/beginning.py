"""What is told before the first step: what offloading takes from the host, and what grouping costs the model.

A pretrained model keeps an attention sink on the first token it sees. Groups that do not see that token cost some
models more than a nat a token (docs/sink.md), and the first steps go into mending it.
"""

import logging
from typing import TYPE_CHECKING, Any

import psutil
import torch
from transformers import PreTrainedConfig

from longlora.config import Recipe
from longlora.distributed import processes_on_this_node
from longlora.models.grouping import Grouping, set_grouping
from longlora.models.load import compute_dtype
from longlora.models.notices import excuse_no_gradients
from longlora.planner import GIB
from longlora.planner.memory import offloaded_bytes

if TYPE_CHECKING:
    from longlora.training.trainer import ExtensionTrainer

logger = logging.getLogger("longlora")

MOST_TOKENS = 8192
TOLD_FROM = 0.5  # nats a token


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
    processes = processes_on_this_node()
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


@torch.no_grad()
def tell_cost_of_groups(trainer: "ExtensionTrainer", model: Any, inputs: dict[str, Any], grouping: Grouping) -> None:
    """Compare the loss of a batch's beginning in groups with that under full attention, and say a large difference.

    All processes do so together, each with its own batch. The random state is left as it was.
    """
    num_tokens = inputs["input_ids"].shape[1]
    # Whatever has a value for each token of the flattened row: tokens, positions, labels.
    batch = {
        name: value[:, :MOST_TOKENS]
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.shape[1:2] == (num_tokens,)
    }
    model.train()  # in evaluation nothing is grouped
    excuse_no_gradients(trainer.model.config.get_text_config())
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), trainer.compute_loss_context_manager():
        losses = []
        for each in (Grouping(group_size=None), grouping):
            set_grouping(model, each)
            losses.append(trainer.mean_loss(model, batch))
    full, grouped = losses
    if grouped - full > TOLD_FROM:
        remedy = (
            "use larger groups (attention.group_size)"
            if grouping.sink_tokens
            else "let every group see the first token of its document (attention.sink_tokens: 1; docs/sink.md)"
        )
        logger.warning(
            "before training, %s tokens have a loss of %.2f in groups and %.2f with full attention, and the run begins "
            "by mending that; %s",
            f"{min(num_tokens, MOST_TOKENS):,}",
            grouped,
            full,
            remedy,
        )
