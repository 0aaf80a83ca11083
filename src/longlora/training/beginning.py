"""What grouping costs a model before it has learned anything, told before the first step.

A pretrained model keeps an attention sink on the first token it sees. Groups that do not see that token cost some
models more than a nat a token (docs/sink.md), and the first steps go into mending it.
"""

import logging
from typing import TYPE_CHECKING, Any

import torch

from longlora.models.grouping import Grouping, set_grouping
from longlora.models.notices import excuse_no_gradients

if TYPE_CHECKING:
    from longlora.training.trainer import ExtensionTrainer

logger = logging.getLogger("longlora")

MOST_TOKENS = 8192
TOLD_FROM = 0.5  # nats a token


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
