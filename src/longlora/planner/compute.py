"""GPUs, the arithmetic of a run, and its time on them.

Time is operations, counted causally, over a part of the GPU's peak, and memory traffic.
"""

import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from longlora.errors import ConfigError
from longlora.planner import activations
from longlora.planner.exchange import LINKS, exchange_seconds
from longlora.planner.job import PlannedRun

GIB = 2**30

HOST_BYTES_PER_SECOND = 25e9  # between GPU and host, PCIe 4.0 × 16; assumed
ATTENTION_BACKWARD = 2.5  # over forward, in FlashAttention: five products for two (arXiv 2307.08691, section 4.1)

PASS_BYTES = 81
"""Memory traffic of all in a layer that is no product, in one forward pass: norms, rotations, activations, sums and
casts; for each number of a token's hidden state and feed-forward. The backward pass counts as two. Fitted with the
efficiency of one H100 and one H200."""

SINK_PASS_BYTES = 21
"""The same of the copies that sink tokens take, for each number of a token's query, key and value. Measured on one H200
(docs/plan.md)."""

STEP_SECONDS = 0.024
"""Of an optimizer step beside its rows: the optimizer, the look at the gradients, the log. Fitted in the same way."""


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The part of its peak that a GPU reaches in products; assumed where `measured` does not say from what."""

    linear: float = 0.60
    attention: float = 0.50
    measured: str | None = None


@dataclass(frozen=True)
class Gpu:
    """A GPU as its vendor describes it, and what products reach of its peak.

    Among several, communication, the optimizer and the data loader are inside the efficiency.
    """

    memory_gib: float  # as the driver reports it, rounded
    peak_flops: float  # dense bfloat16 with float32 accumulation (T4, which has none: float16)
    bytes_per_second: float  # to and from its memory
    among_several: Efficiency = Efficiency()
    by_itself: Efficiency | None = None  # None: as among several
    bytes_between: float = LINKS["PCIe 4.0 × 16"]  # a second, into each of several in one machine

    def efficiency(self, num_gpus: int) -> Efficiency:
        """What training reaches on so many of them."""
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
    """Look a GPU up by its name here, by a part of it that fits no other ("4090"), or by what its driver calls it.

    Raises:
        ConfigError: it is not known, or several are called so.
    """
    words = _words(name)
    found = [known for known in GPUS if words and words <= _words(known)]
    if len(found) == 1:
        return GPUS[found[0]]
    if len(found) > 1:
        raise ConfigError(f"GPU {name!r} may be {' or '.join(found)}; name one")
    if gpu := recognise_gpu(name):
        return gpu
    raise ConfigError(f"unknown GPU {name!r}; known are {', '.join(GPUS)}; or give --memory alone")


def recognise_gpu(device_name: str) -> Gpu | None:
    """Find a GPU by what its driver calls it, such as "NVIDIA A100-SXM4-80GB"; None if it is not known here."""
    words = _words(device_name)
    return next((gpu for name, gpu in GPUS.items() if words >= _words(name)), None)


def _words(name: str) -> set[str]:
    words = re.split(r"[\s_-]+", re.sub(r"rtx(?=\w)", "rtx-", name.lower()))
    return set(words) - {"nvidia", "geforce", "tesla", ""}


class Flops(NamedTuple):
    """Operations of one row, forward and backward, with what is computed again."""

    linear: float
    attention: float


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How long a run takes."""

    seconds: float
    tokens_per_second_per_gpu: float
    flops_per_second_per_gpu: float
    efficiency_measured_on: str | None  # None: the efficiency is assumed


def plan_duration(run: PlannedRun, gpu: Gpu) -> Duration:
    """Time of all steps; among several GPUs communication is inside their efficiency, but for the parts of a row."""
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
    shape, tokens, group = run.architecture, run.context_length, run.group_tokens
    in_window = shape.num_heads * window_pairs(tokens, shape.sliding_window or tokens)
    if run.attention == "full":
        others = shape.num_heads * window_pairs(tokens, tokens)
    else:
        unshifted_heads = (shape.num_heads + 1) // 2
        others = unshifted_heads * segment_pairs(tokens, group, first=group)
        others += (shape.num_heads - unshifted_heads) * segment_pairs(tokens, group, first=group // 2)
    return in_window * shape.num_sliding_layers + others * (shape.num_layers - shape.num_sliding_layers)


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
    """Seconds of one GPU that a row takes; GPUs that share it have as many together."""
    flops, efficiency = row_flops(run), gpu.efficiency(run.num_gpus)
    seconds = flops.linear / (gpu.peak_flops * efficiency.linear)
    seconds += flops.attention / (gpu.peak_flops * efficiency.attention)
    seconds += traffic_bytes(run) / gpu.bytes_per_second
    seconds += run.sequence_parallel_size * exchange_seconds(run, gpu.bytes_between)
    if not run.offload_checkpoints:
        return seconds
    # Out and back, beside the computation as far as it fits.
    held = run.context_length * activations.layer_input(run) * run.architecture.num_layers
    return max(seconds, 2 * held / HOST_BYTES_PER_SECOND)
