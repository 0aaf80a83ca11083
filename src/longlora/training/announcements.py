"""What a run logs before its first step: the model, the rows, host memory for offloading, the cost of grouping."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch
from transformers import PreTrainedConfig

from longlora.config import Recipe
from longlora.distributed import current_strategy, local_world_size, num_processes
from longlora.models.grouping import Grouping, set_grouping
from longlora.models.load import TrainingModel, compute_dtype
from longlora.models.lora import num_parameters, trainable_parameters
from longlora.planner.compute import GIB
from longlora.planner.memory import offloaded_bytes
from longlora.rope.extend import describe_rope
from longlora.rope.methods import LENGTH_DEPENDENT

logger = logging.getLogger("longlora")

MOST_TOKENS = 8192
TOLD_FROM = 0.5  # nats per token


def tell_model(recipe: Recipe, prepared: TrainingModel) -> None:
    """Log how far the context is extended, which parameters are trained, and with which attention."""
    extension = prepared.extension
    contexts = f"{extension.base_context:,} -> {extension.context_length:,}"
    logger.info("%s: %s tokens (rope %s)", extension.base_model, contexts, describe_rope(extension.rope_parameters))
    if recipe.rope.rope_type in LENGTH_DEPENDENT and not recipe.data.cross_document_attention:
        logger.warning(
            "rope.rope_type=%s depends on the longest document in a row: short ones do not train the positions that "
            "long texts use; use long documents, or data.cross_document_attention: true",
            recipe.rope.rope_type,
        )
    counts = trainable_parameters(prepared.model)
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.items() if count and kind != "total")
    logger.info("training %s parameters: %s", f"{counts['total']:,} of {num_parameters(prepared.model):,}", kinds)
    attention = "full"
    if recipe.attention.pattern == "s2":
        shift = "" if recipe.attention.shift else "unshifted "
        attention = f"S² with {shift}groups of {recipe.group_size:,} tokens"
        if sinks := recipe.attention.sink_tokens:
            attention += f" and {sinks} sink token{'s' * (sinks > 1)}"
        if interval := recipe.attention.full_attention_interval:
            attention += f", full attention in one layer of {interval}"
        if dense_steps := recipe.max_steps - recipe.first_dense_step:
            attention += f", full attention in the last {dense_steps} of {recipe.max_steps} steps"
    logger.info("attention: %s", attention)
    is_windowed = "sliding_attention" in (getattr(prepared.model.config.get_text_config(), "layer_types", None) or ())
    if recipe.trains_groups_alone and not is_windowed:  # windows cross groups
        logger.warning(
            "no token attends beyond its group of %s in any layer or step, as if rows were as short: set "
            "attention.full_attention_interval, such as 6, or attention.shift: true",
            f"{recipe.group_size:,} tokens",
        )


def tell_rows(recipe: Recipe, num_rows: int, rows_in_step: int) -> None:
    """Log the number of rows, how processes share them, and whether rows repeat."""
    most = "up to " if recipe.data.kind == "sft" else ""
    logger.info("%s tokens", f"{num_rows:,} rows of {most}{recipe.context_length:,}")
    if num_processes() > 1:
        sharing = recipe.sequence_parallel_size
        shared = f"each row in {sharing} of " if sharing > 1 else ""
        step = f"{rows_in_step:,} row{'s' * (rows_in_step > 1)} in an optimizer step"
        logger.info("%s%s processes (%s), %s", shared, num_processes(), current_strategy(), step)
    if (needed := recipe.max_steps * rows_in_step) > num_rows:
        logger.warning(
            "the run needs %s: each is seen %.1f times; lower max_steps or add texts",
            f"{needed:,} rows and the data has {num_rows:,}",
            needed / num_rows,
        )


def tell_far_targets(counts: Sequence[int], weights: Sequence[float], beyond: int) -> None:
    """Log the share of far targets and their weights; warn if there are none."""
    far = [(2**bucket, count) for bucket, count in enumerate(counts) if 2**bucket >= beyond and count]
    if not far:
        logger.warning(
            "far_target_weight has no effect: no document has a target with %s tokens before it; use longer "
            "documents, or lower far_target_beyond",
            f"{beyond:,}",
        )
        return
    share = sum(count for _, count in far) / sum(counts)
    heaviest = max(far, key=lambda bucket: weights[bucket[0].bit_length() - 1])[0]
    logger.info(
        "far targets: %.1f %% have %s tokens of their document before them; weights %.2f (near) to %.2f (from %s)",
        100 * share, f"{far[0][0]:,}", weights[0], weights[heaviest.bit_length() - 1], f"{heaviest:,}",
    )  # fmt: skip


def tell_offloading(recipe: Recipe, config: PreTrainedConfig) -> None:
    """Log how much host memory offloaded layer inputs take, and warn if that much is not free.

    TRL offloads everything regardless, and only logs when more than `virtual_memory_safe_pct=60` percent of the host's
    memory is in use (trl 1.16): nothing stays on the GPU instead, and a host that runs out of memory kills the run.
    """
    if not recipe.gradient_checkpointing:
        return  # other tensors are offloaded then, in amounts that depend on the model
    text_config = config.get_text_config()
    tokens = recipe.per_device_train_batch_size * recipe.context_length
    processes = local_world_size()
    needed = processes * offloaded_bytes(
        num_layers=text_config.num_hidden_layers,
        layer_input_bytes=tokens * text_config.hidden_size * compute_dtype(recipe.dtype).itemsize,
    )
    memory = psutil.virtual_memory()
    told = (
        f"activation_offloading: layer inputs take {needed / GIB:.1f} GiB of the host's memory in {processes} "
        f"process{'es' * (processes > 1)}, and {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB are free"
    )
    if needed > memory.available:
        logger.warning("%s: the run will run out of memory; use a shorter context or a host with more memory", told)
    else:
        logger.info(told)


@torch.no_grad()
def tell_cost_of_groups(
    mean_loss: Callable[[Any, dict[str, Any]], float], model: Any, inputs: dict[str, Any], grouping: Grouping
) -> None:
    """Compare the loss on the start of a batch in groups with that under full attention, and warn if it is much higher.

    A pretrained model keeps an attention sink on the first token it sees. Groups that do not see that token cost some
    models more than a nat per token (docs/sink.md), and the first steps only repair this. All processes compare
    together, each with its own batch. The random state is preserved.
    """
    num_tokens = inputs["input_ids"].shape[1]
    # Everything with one value per token of the flattened row: tokens, positions, labels.
    batch = {
        name: value[:, :MOST_TOKENS]
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.shape[1:2] == (num_tokens,)
    }
    model.train()  # evaluation does not group
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        set_grouping(model, Grouping(group_size=None))
        full = mean_loss(model, batch)
        set_grouping(model, grouping)
        grouped = mean_loss(model, batch)
    if grouped - full > TOLD_FROM:
        remedy = "let every group see the first token of its document (attention.sink_tokens: 1; docs/sink.md)"
        logger.warning(
            "before training, the loss of %s tokens is %.2f in groups and %.2f with full attention, and the first "
            "steps only repair this; %s",
            f"{min(num_tokens, MOST_TOKENS):,}",
            grouped,
            full,
            remedy if grouping.shift and not grouping.sink_tokens else "use larger groups (attention.group_size)",
        )
