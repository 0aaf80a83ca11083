"""What the GPUs that share a row send one another around attention, by each of the ways to share it; docs/engines.md.

Bytes are those that one GPU receives in one layer's forward pass, and times are of all layers of one row, forward and
backward, without any overlap with computation. Speeds are assumed: two thirds of what the vendor names for a direction.
"""

from longlora.planner.job import PlannedRun

LINKS = {"NVLink (H100)": 300e9, "PCIe 4.0 × 16": 21e9, "Ethernet, 100 Gbit/s for each GPU": 8e9}
"""Bytes a second into one GPU."""


def ulysses_bytes(run: PlannedRun) -> int:
    """The exchanges of queries, keys, values and outputs: of each, all but the part that stays.

    Where there are fewer key-value heads than GPUs, several GPUs get the same one.
    """
    shape, size = run.architecture, run.sequence_parallel_size
    kv_size = shape.kv_size * max(1, size // shape.num_kv_heads)
    return run.compute_bytes * run.tokens * 2 * (shape.query_size + kv_size) * (size - 1) // size


def ring_bytes(run: PlannedRun) -> int:
    """Keys and values of all the others, one after another."""
    return run.compute_bytes * run.tokens * 2 * run.architecture.kv_size * (run.sequence_parallel_size - 1)


def halo_bytes(run: PlannedRun) -> int:
    """Keys and values that the groups of S²-Attn reach before a GPU's part of the row: of the GPU that needs most.

    Sink tokens are too few to count.
    """
    part = run.tokens
    reach = max(_reach(first, run.group_tokens) for first in range(0, part * run.sequence_parallel_size, part))
    return run.compute_bytes * reach * run.architecture.kv_size


def _reach(first: int, group: int) -> int:
    """How far the two groups of a token reach back, of which half of the heads see one each."""
    return first % group + ((first - group // 2) % group if first >= group // 2 else first)


def exchange_seconds(run: PlannedRun, bytes_per_second: float, *, way: str = "ulysses") -> float:
    """Time of a row's exchanges in all layers, forward, forward again under checkpointing, and backward.

    Backward, Ulysses and the halo send as much as forward; the ring sends keys and values again, and their gradients.
    """
    if run.sequence_parallel_size == 1:
        return 0.0
    each = {"ulysses": ulysses_bytes, "ring": ring_bytes, "halo": halo_bytes}[way](run)
    passes = 2 + run.gradient_checkpointing + (way == "ring")
    return passes * each * run.architecture.num_layers / bytes_per_second
