"""GPUs, the operations of a training run, and the time they take.

Time is the number of operations (only causal pairs are counted) at a fraction of the GPU's peak, plus memory traffic.
"""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from longlora.errors import ConfigError
from longlora.planner import activations
from longlora.planner.job import PlannedRun

GIB = 2**30

LINKS = {"NVLink (H100)": 300e9, "PCIe 4.0 × 16": 21e9, "Ethernet, 100 Gbit/s for each GPU": 8e9}
"""Bytes per second into one GPU: two thirds of the vendor's figure for one direction; assumed."""

HOST_BYTES_PER_SECOND = 25e9  # between GPU and host, PCIe 4.0 × 16; assumed
ATTENTION_BACKWARD = 2.5  # relative to forward, in FlashAttention: five products to two (arXiv 2307.08691, section 4.1)

PASS_BYTES = 81
"""Memory traffic of a layer's other operations in one forward pass (norms, rotations, activations, sums and casts), for
each element of a token's hidden state and feed-forward. The backward pass counts twice. Fitted together with the
efficiency of one H100 and one H200."""

SINK_PASS_BYTES = 21
"""The same for the copies that sink tokens need, for each element of a token's query, key and value. Measured on one
H200 (docs/plan.md)."""

STEP_SECONDS = 0.024
"""Overhead of an optimizer step: the optimizer, the gradient check, logging. Fitted in the same way."""


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The fraction of its peak that a GPU reaches in matrix products; `measured` is the source, None if assumed."""

    linear: float = 0.60
    attention: float = 0.50
    measured: str | None = None


@dataclass(frozen=True)
class Gpu:
    """A GPU's specifications, and the efficiency that training reaches on it.

    With several GPUs, the efficiency includes communication, the optimizer and the data loader.
    """

    memory_gib: float  # as the driver reports it, rounded
    peak_flops: float  # dense bfloat16 with float32 accumulation (float16 on T4, which has no bfloat16)
    bytes_per_second: float  # to and from its memory
    among_several: Efficiency = Efficiency()
    by_itself: Efficiency | None = None  # None: same as `among_several`
    bytes_between: float = LINKS["PCIe 4.0 × 16"]  # per second, into each GPU of a machine with several

    def efficiency(self, num_gpus: int) -> Efficiency:
        """Return the efficiency of training on `num_gpus` of them."""
        return self.by_itself if num_gpus == 1 and self.by_itself else self.among_several


_A100 = Efficiency(linear=0.61, attention=0.66, measured="the paper's table 12 (8 GPUs, 7B)")
_H100 = Efficiency(
    linear=0.49,
    attention=0.36,
    measured="LongLoRA's hours in HiCI (arXiv 2603.20843; 8 GPUs, 7B), 64 rows a step assumed",
)
_ONE_HOPPER = Efficiency(
    linear=0.63, attention=0.57, measured="steps of longlora on one H100 and one H200 (8B, 8k to 64k tokens)"
)
_NVLINK = LINKS["NVLink (H100)"]
GPUS = {
    "a100-40gb": Gpu(40, 312e12, 1.555e12, _A100, bytes_between=200e9),
    "a100-80gb": Gpu(80, 312e12, 2.039e12, _A100, bytes_between=200e9),
    "h100-80gb": Gpu(80, 989e12, 3.35e12, _H100, _ONE_HOPPER, bytes_between=_NVLINK),
    "h200": Gpu(140, 989e12, 4.8e12, replace(_H100, measured=None), _ONE_HOPPER, bytes_between=_NVLINK),
    "b200": Gpu(178, 2250e12, 7.7e12, bytes_between=2 * _NVLINK),
    "l40s": Gpu(45, 362e12, 0.864e12),
    "l4": Gpu(22.5, 121e12, 0.3e12),
    "t4": Gpu(15, 65e12, 0.32e12),
    "rtx-a6000": Gpu(48, 155e12, 0.768e12),
    "rtx-5090": Gpu(31.5, 210e12, 1.792e12),
    "rtx-4090": Gpu(24, 165e12, 1.008e12),
    "rtx-3090": Gpu(24, 71e12, 0.936e12),
}


def find_gpu(name: str) -> Gpu:
    """Look up a GPU by its name in `GPUS`, by a unique part of it ("4090"), or by its driver's name.

    Raises:
        ConfigError: it is unknown, or the name is ambiguous.
    """
    words = _words(name)
    found = [known for known in GPUS if words and words <= _words(known)]
    if len(found) == 1:
        return GPUS[found[0]]
    if len(found) > 1:
        raise ConfigError(f"GPU {name!r} may be {' or '.join(found)}; name one")
    if gpu := recognise_gpu(name):
        return gpu
    raise ConfigError(f"unknown GPU {name!r}; known are {', '.join(GPUS)}; or give only --memory")


def recognise_gpu(device_name: str) -> Gpu | None:
    """Find a GPU by its driver's name, such as "NVIDIA A100-SXM4-80GB"; None if it is unknown."""
    words = _words(device_name)
    return next((gpu for name, gpu in GPUS.items() if words >= _words(name)), None)


def _words(name: str) -> set[str]:
    words = re.split(r"[\s_-]+", re.sub(r"rtx(?=\w)", "rtx-", name.lower()))
    return set(words) - {"nvidia", "geforce", "tesla", ""}


class Flops(NamedTuple):
    """Operations of one row, forward and backward, including recomputation."""

    linear: float
    attention: float


@dataclass(frozen=True, kw_only=True)
class Duration:
    """The duration and speed of a run."""

    seconds: float
    tokens_per_second_per_gpu: float
    flops_per_second_per_gpu: float
    efficiency_measured_on: str | None  # None: the efficiency is assumed


def plan_duration(run: PlannedRun, gpu: Gpu) -> Duration:
    """Compute the time of all steps.

    With several GPUs, the efficiency includes communication, except for the exchanges of sequence parallelism.
    """
    dense = run.dense_finish if run.attention == "s2" else 0.0
    seconds_per_row = flops_per_row = 0.0
    for part, of_part in ((1 - dense, run), (dense, replace(run, attention="full"))):
        seconds_per_row += part * _seconds_per_row(of_part, gpu)
        flops_per_row += part * sum(row_flops(of_part))
    rows = run.steps * run.accumulation_steps * run.batch_size / run.sequence_parallel_size  # on each GPU
    seconds = rows * seconds_per_row + run.steps * STEP_SECONDS
    return Duration(
        seconds=seconds,
        tokens_per_second_per_gpu=rows * run.context_length / seconds,
        flops_per_second_per_gpu=rows * flops_per_row / seconds,
        efficiency_measured_on=gpu.efficiency(run.num_gpus).measured,
    )


def row_flops(run: PlannedRun) -> Flops:
    """Count the operations of one row, with the attention of `run.attention` and without the dense finish.

    Linear layers: 2 operations per weight and token forward, as many for the gradient of the input, and again as many
    for the gradient of the weight if it is trained. Attention: 4·D per query-key pair and head forward, 2.5 times that
    backward. Checkpointing repeats the forward pass of each layer except its last product, chunked cross-entropy that
    of the output layer, and a tiled feed-forward its own once more.
    """
    shape, tokens = run.architecture, run.context_length
    layers = shape.parameters.attention + shape.active_mlp_parameters
    head = shape.parameters.embeddings  # the output layer has the embedding's shape, tied or not
    lora = 0 if run.tuning == "full" else run.trained_by_kind()["lora"]
    weight_gradients = (layers if run.tuning == "full" else lora) + run.trains_head * head
    products = 2 * (layers + lora) + (2 + run.chunked_loss) * head + weight_gradients
    if run.gradient_checkpointing:
        # A layer's last product is not recomputed: nothing needs its result, and torch stops before it.
        stops_early = not run.reentrant_checkpointing and (run.tuning == "full" or not run.trains_mlp)
        last = shape.num_layers * shape.hidden_size * shape.active_intermediate_size
        products += layers + lora - stops_early * last
    if run.tiled_mlp:
        products += shape.active_mlp_parameters
    attention = 4 * shape.head_dim * head_pairs(run) * (1 + run.gradient_checkpointing + ATTENTION_BACKWARD)
    return Flops(linear=2.0 * tokens * products, attention=float(attention))


def head_pairs(run: PlannedRun) -> int:
    """Count the query-key pairs of all heads and layers in a row that is a single document."""
    shape, tokens, group = run.architecture, run.context_length, run.group_tokens
    in_window = shape.num_heads * window_pairs(tokens, shape.sliding_window or tokens)
    full = shape.num_heads * window_pairs(tokens, tokens)
    unshifted_heads = (shape.num_heads + 1) // 2 if run.shift else shape.num_heads
    grouped = unshifted_heads * segment_pairs(tokens, group, first=group)
    grouped += (shape.num_heads - unshifted_heads) * segment_pairs(tokens, group, first=group // 2)
    num_full = run.num_unwindowed_layers // (run.full_attention_interval or run.num_unwindowed_layers + 1)
    if run.attention == "full":
        num_full = run.num_unwindowed_layers
    return in_window * shape.num_sliding_layers + full * num_full + grouped * (run.num_unwindowed_layers - num_full)


def segment_pairs(tokens: int, group: int, *, first: int) -> int:
    """Count the causal pairs of a row that is cut after `first` tokens and then after every `group` tokens."""
    first = min(first, tokens)
    groups, rest = divmod(tokens - first, group)
    return _triangle(first) + groups * _triangle(group) + _triangle(rest)


def window_pairs(tokens: int, window: int) -> int:
    """Count the causal pairs if each token sees itself and at most `window - 1` tokens before it."""
    window = min(window, tokens)
    return _triangle(window) + (tokens - window) * window


def _triangle(count: int) -> int:
    return count * (count + 1) // 2


def traffic_bytes(run: PlannedRun) -> int:
    """Count the bytes of memory traffic of one row outside matrix products: forward, backward and recomputation."""
    shape = run.architecture
    per_token = PASS_BYTES * (shape.hidden_size + shape.active_intermediate_size)
    if run.sees_sinks:
        per_token += SINK_PASS_BYTES * (shape.query_size + 2 * shape.kv_size)
    passes = 3 + run.gradient_checkpointing
    return passes * per_token * shape.num_layers * run.context_length


def ulysses_bytes(run: PlannedRun) -> int:
    """Return the bytes that one GPU receives in one layer's forward pass from those that share its rows.

    These are queries, keys, values and outputs, all but the part that stays local. If there are fewer key-value heads
    than GPUs, several GPUs receive the same head. docs/strategies.md compares Ulysses with a ring and a halo.
    """
    size = run.sequence_parallel_size
    return run.compute_bytes * run.tokens * 2 * (run.architecture.query_size + run.kernel_kv_size) * (size - 1) // size


def exchange_seconds(run: PlannedRun, bytes_per_second: float) -> float:
    """Return the time of a row's exchanges in all layers: forward, again under checkpointing, and backward.

    They do not overlap with computation, and send as much backward as forward.
    """
    passes = 2 + run.gradient_checkpointing
    return passes * ulysses_bytes(run) * run.architecture.num_layers / bytes_per_second


def _seconds_per_row(run: PlannedRun, gpu: Gpu) -> float:
    """Return the GPU-seconds of one row, in total over the GPUs that share it."""
    flops, efficiency = row_flops(run), gpu.efficiency(run.num_gpus)
    seconds = flops.linear / (gpu.peak_flops * efficiency.linear)
    seconds += flops.attention / (gpu.peak_flops * efficiency.attention)
    seconds += traffic_bytes(run) / gpu.bytes_per_second
    seconds += run.sequence_parallel_size * exchange_seconds(run, gpu.bytes_between)
    if not run.offload_checkpoints:
        return seconds
    # Offloading to the host and back overlaps with computation.
    held = run.context_length * activations.layer_input(run) * run.architecture.num_layers
    return max(seconds, 2 * held / HOST_BYTES_PER_SECOND)
