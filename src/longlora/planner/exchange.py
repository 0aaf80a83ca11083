"""Communication around attention between the GPUs that share a row, for each kind of sequence parallelism.

See docs/engines.md. Bytes are those that one GPU receives in one layer's forward pass. Times are for all layers of one
row, forward and backward, without overlap with computation. Speeds are assumed: two thirds of the vendor's figure for
one direction.
"""

from longlora.planner.job import PlannedRun

LINKS = {"NVLink (H100)": 300e9, "PCIe 4.0 × 16": 21e9, "Ethernet, 100 Gbit/s for each GPU": 8e9}
"""Bytes per second into one GPU."""


def ulysses_bytes(run: PlannedRun) -> int:
    """Return the bytes of queries, keys, values and outputs exchanged by Ulysses, all but the part that stays local.

    If there are fewer key-value heads than GPUs, several GPUs receive the same head.
    """
    shape, size = run.architecture, run.sequence_parallel_size
    kv_size = shape.kv_size * max(1, size // shape.num_kv_heads)
    return run.compute_bytes * run.tokens * 2 * (shape.query_size + kv_size) * (size - 1) // size


def ring_bytes(run: PlannedRun) -> int:
    """Return the bytes of the keys and values of all other GPUs, received in turn by ring attention."""
    return run.compute_bytes * run.tokens * 2 * run.architecture.kv_size * (run.sequence_parallel_size - 1)


def halo_bytes(run: PlannedRun) -> int:
    """Return the bytes of the keys and values that S²-Attn's groups need from before a GPU's part of the row.

    This is for the GPU that needs most. Sink tokens are negligible.
    """
    part = run.tokens
    reach = max(_reach(first, run.group_tokens) for first in range(0, part * run.sequence_parallel_size, part))
    return run.compute_bytes * reach * run.architecture.kv_size


def _reach(first: int, group: int) -> int:
    """Return how far a token's two groups reach back in total, each seen by half of the heads."""
    return first % group + ((first - group // 2) % group if first >= group // 2 else first)


def exchange_seconds(run: PlannedRun, bytes_per_second: float, *, way: str = "ulysses") -> float:
    """Return the time of a row's exchanges in all layers: forward, again under checkpointing, and backward.

    Backward, Ulysses and the halo send as much as forward; the ring resends keys and values, and sends their gradients.
    """
    if run.sequence_parallel_size == 1:
        return 0.0
    each = {"ulysses": ulysses_bytes, "ring": ring_bytes, "halo": halo_bytes}[way](run)
    passes = 2 + run.gradient_checkpointing + (way == "ring")
    return passes * each * run.architecture.num_layers / bytes_per_second
