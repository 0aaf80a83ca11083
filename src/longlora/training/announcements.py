"""What a run says before its first step: what is trained on what, what it takes from the host, what grouping costs."""

import logging
from typing import TYPE_CHECKING, Any

import psutil
import torch
from transformers import PreTrainedConfig

from longlora.config import Recipe
from longlora.distributed import current_strategy, local_world_size, num_processes
from longlora.models.grouping import Grouping, set_grouping
from longlora.models.load import TrainingModel, compute_dtype
from longlora.models.lora import num_parameters, trainable_parameters
from longlora.models.probe import excuse_no_gradients
from longlora.planner import GIB
from longlora.planner.memory import offloaded_bytes
from longlora.rope import describe_rope

if TYPE_CHECKING:
    from longlora.training.trainer import ExtensionTrainer

logger = logging.getLogger("longlora")

MOST_TOKENS = 8192
TOLD_FROM = 0.5  # nats a token


def tell_model(recipe: Recipe, prepared: TrainingModel) -> None:
    """Say how far the model is extended, what of it is trained, and with which attention."""
    extension = prepared.extension
    logger.info(
        "%s: %s -> %s tokens (rope %s)",
        extension.base_model,
        f"{extension.base_context:,}",
        f"{extension.context_length:,}",
        describe_rope(extension.rope_parameters),
    )
    if recipe.rope.rope_type in ("dynamic", "longrope") and not recipe.data.cross_document_attention:
        logger.warning(
            "rope.rope_type=%s goes by the longest document in a row: short ones do not train the positions that "
            "long texts are read with; use long documents, or data.cross_document_attention: true",
            recipe.rope.rope_type,
        )
    counts = trainable_parameters(prepared.model)
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.items() if count and kind != "total")
    total = num_parameters(prepared.model)
    logger.info("training %s of %s parameters: %s", f"{counts['total']:,}", f"{total:,}", kinds)
    if recipe.attention.pattern == "full":
        logger.info("attention: full")
        return
    sinks, dense_steps = recipe.attention.sink_tokens, recipe.max_steps - recipe.first_dense_step
    logger.info(
        "attention: S² with groups of %s tokens%s%s",
        f"{recipe.group_size:,}",
        f", each seeing the first {sinks} of its document" if sinks else "",
        f", full attention in the last {dense_steps} of {recipe.max_steps} steps" if dense_steps else "",
    )


def tell_rows(recipe: Recipe, num_rows: int, rows_in_step: int) -> None:
    """Say how many rows there are, who shares them, and whether they are seen more than once."""
    rows_needed = recipe.max_steps * rows_in_step
    most = "up to " if recipe.data.kind == "sft" else ""
    logger.info("%s rows of %s%s tokens", f"{num_rows:,}", most, f"{recipe.context_length:,}")
    if num_processes() > 1:
        step = f"{rows_in_step:,} rows in an optimizer step"
        logger.info("%s processes (%s), %s", num_processes(), current_strategy(), step)
    if rows_needed > num_rows:
        logger.warning(
            "the run takes %s rows and the data has %s: each is seen %.1f times; lower max_steps or add texts",
            f"{rows_needed:,}",
            f"{num_rows:,}",
            rows_needed / num_rows,
        )


def tell_offloading(recipe: Recipe, config: PreTrainedConfig) -> None:
    """Say how much of the host's memory offloaded layer inputs take, and warn where it is not there.

    TRL offloads whatever there is, and only logs that more than `virtual_memory_safe_pct=60` per cent of the host's
    memory is in use (trl 1.16): nothing is kept on the GPU instead, and a host without room ends the run.
    """
    if not recipe.gradient_checkpointing:
        return  # then it is not layers' inputs that leave, and how much depends on the model
    text_config = config.get_text_config()
    tokens = recipe.per_device_train_batch_size * recipe.context_length
    processes = local_world_size()
    needed = processes * offloaded_bytes(
        num_layers=text_config.num_hidden_layers,
        layer_input_bytes=tokens * text_config.hidden_size * compute_dtype(recipe.dtype).itemsize,
    )
    memory = psutil.virtual_memory()
    lacks = needed > memory.available
    logger.log(
        logging.WARNING if lacks else logging.INFO,
        "activation_offloading: layer inputs take %.1f GiB of the host's memory in %s process%s, and %.1f of %.1f GiB "
        "are free%s",
        needed / GIB,
        processes,
        "" if processes == 1 else "es",
        memory.available / GIB,
        memory.total / GIB,
        ": the run will end for want of memory; take a shorter context or a host with more" if lacks else "",
    )


@torch.no_grad()
def tell_cost_of_groups(trainer: "ExtensionTrainer", model: Any, inputs: dict[str, Any], grouping: Grouping) -> None:
    """Compare the loss of a batch's beginning in groups with that under full attention, and say a large difference.

    A pretrained model keeps an attention sink on the first token it sees. Groups that do not see that token cost some
    models more than a nat a token (docs/sink.md), and the first steps go into mending it. All processes compare
    together, each with its own batch. The random state is left as it was.
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
        logger.warning(
            "before training, %s tokens have a loss of %.2f in groups and %.2f with full attention, and the run begins "
            "by mending that; %s",
            f"{min(num_tokens, MOST_TOKENS):,}",
            grouped,
            full,
            "use larger groups (attention.group_size)"
            if grouping.sink_tokens
            else "let every group see the first token of its document (attention.sink_tokens: 1; docs/sink.md)",
        )
