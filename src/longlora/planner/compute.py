"""Arithmetic of a run and its time: operations, counted causally, over a part of the peak, and memory traffic."""

from dataclasses import dataclass, replace

from longlora.planner import activations
from longlora.planner.hardware import Gpu
from longlora.planner.job import PlannedRun

ATTENTION_BACKWARD = 2.5
"""Backward over forward of FlashAttention: five products where the forward has two (arXiv 2307.08691, section 4.1)."""

PASS_BYTES = 81
"""Memory traffic of all in a layer that is no product, in one forward pass: norms, rotations, activations, sums and
casts; for each number of a token's hidden state and feed-forward. The backward pass counts as two. Fitted with the
efficiency of one H100 and one H200."""

SINK_PASS_BYTES = 21
"""The same of the copies that sink tokens take, for each number of a token's query, key and value. Measured on one H200
(docs/plan.md)."""

STEP_SECONDS = 0.024
"""Of an optimizer step beside its rows: the optimizer, the look at the gradients, the log. Fitted in the same way."""

HOST_BYTES_PER_SECOND = 25e9
"""Between GPU and host, PCIe 4.0 × 16. Assumed."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of one row, forward and backward, with what is computed again."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        """All operations of one row."""
        return self.linear + self.attention


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How long a run takes."""

    seconds: float
    tokens_per_second_per_gpu: float
    flops_per_second_per_gpu: float
    measured: str | None
    """What the GPU's efficiency is fitted to; None if it is assumed."""


def plan_duration(run: PlannedRun, gpu: Gpu) -> Duration:
    """Time of all steps; among several GPUs communication is inside their efficiency."""
    sparse = _seconds_per_row(run, gpu)
    dense = _seconds_per_row(replace(run, attention="full"), gpu)
    dense_part = run.dense_finish if run.attention == "s2" else 0.0
    per_row = (1 - dense_part) * sparse + dense_part * dense
    rows = run.steps * run.accumulation_steps * run.batch_size
    seconds = rows * per_row + run.steps * STEP_SECONDS
    sparse_flops, dense_flops = row_flops(run).total, row_flops(replace(run, attention="full")).total
    flops = (1 - dense_part) * sparse_flops + dense_part * dense_flops
    return Duration(
        seconds=seconds,
        tokens_per_second_per_gpu=rows * run.context_length / seconds,
        flops_per_second_per_gpu=rows * flops / seconds,
        measured=gpu.efficiency(run.num_gpus).measured,
    )


def row_flops(run: PlannedRun) -> Flops:
    """Operations of one row; S²-Attn as `run.attention` says, without the dense finish.

    Linear layers: 2 operations per weight and token forward, as many for the gradient of the input, and again as many
    for that of the weight where it is trained. Attention: 4·D per query-key pair and head forward, 2.5 times that
    backward. Checkpointing repeats the forward pass of layers but for their last product, chunked cross-entropy that of
    the output layer, and a tiled feed-forward its own once more.
    """
    shape, tokens = run.architecture, run.context_length
    layers = shape.attention_parameters + shape.active_mlp_parameters
    head = shape.embedding_parameters  # the output layer has the embedding's shape, tied or not
    lora = 0 if run.tuning == "full" else run.trained_by_kind()["lora"]
    weight_gradients = (layers if run.tuning == "full" else lora) + run.trains_head * head
    products = 2 * (layers + lora) + (2 + run.chunked_loss) * head + weight_gradients
    if run.gradient_checkpointing:
        # The last product of a layer is not computed again: nothing needs its result (torch stops before it).
        stops_early = not run.reentrant_checkpointing and (run.tuning == "full" or not run.trains_mlp)
        last = shape.num_layers * shape.hidden_size * shape.active_intermediate_size
        products += layers + lora - stops_early * last
    if run.tiled_mlp:
        products += shape.active_mlp_parameters
    attention = 4 * shape.head_dim * head_pairs(run) * (1 + run.gradient_checkpointing + ATTENTION_BACKWARD)
    return Flops(linear=2.0 * tokens * products, attention=float(attention))


def head_pairs(run: PlannedRun) -> int:
    """Query-key pairs of all heads and layers in one row that is one document."""
    shape, tokens = run.architecture, run.context_length
    windowed = shape.num_sliding_layers
    pairs = shape.num_heads * window_pairs(tokens, shape.sliding_window or tokens) * windowed
    group = run.group_tokens
    if run.attention == "full":
        return pairs + shape.num_heads * window_pairs(tokens, tokens) * (shape.num_layers - windowed)
    unshifted_heads = (shape.num_heads + 1) // 2
    per_layer = unshifted_heads * segment_pairs(tokens, group, first=group)
    per_layer += (shape.num_heads - unshifted_heads) * segment_pairs(tokens, group, first=group // 2)
    return pairs + per_layer * (shape.num_layers - windowed)


def segment_pairs(tokens: int, group: int, *, first: int) -> int:
    """Causal pairs of a row that is cut after `first` tokens and then after every `group`."""
    first = min(first, tokens)
    groups, rest = divmod(tokens - first, group)
    return _triangle(first) + groups * _triangle(group) + _triangle(rest)


def window_pairs(tokens: int, window: int) -> int:
    """Causal pairs where each token sees itself and at most `window - 1` before it."""
    window = min(window, tokens)
    return _triangle(window) + (tokens - window) * window


def _triangle(count: int) -> int:
    return count * (count + 1) // 2


def traffic_bytes(run: PlannedRun) -> int:
    """What one row moves between the GPU and its memory beside its products, forward, backward and again."""
    shape = run.architecture
    per_token = PASS_BYTES * (shape.hidden_size + shape.active_intermediate_size)
    if run.sees_sinks:
        per_token += SINK_PASS_BYTES * (shape.query_size + 2 * shape.kv_size)
    passes = 3 + run.gradient_checkpointing
    return passes * per_token * shape.num_layers * run.context_length


def _seconds_per_row(run: PlannedRun, gpu: Gpu) -> float:
    flops, efficiency = row_flops(run), gpu.efficiency(run.num_gpus)
    seconds = flops.linear / (gpu.peak_flops * efficiency.linear)
    seconds += flops.attention / (gpu.peak_flops * efficiency.attention)
    seconds += traffic_bytes(run) / gpu.bytes_per_second
    if not run.offload_checkpoints:
        return seconds
    # Out and back, beside the computation as far as it fits.
    held = run.context_length * activations.layer_input(run) * run.architecture.num_layers
    return max(seconds, 2 * held / HOST_BYTES_PER_SECOND)
