"""Each segment by the kernel that is fastest at its length: long ones by SDPA on views, the rest by `varlen_attn`.

On some cards SDPA takes a kernel (cuDNN's) that is far faster than FlashAttention 2 under `varlen_attn`, but needs a
call for each length and prepares itself for each new shape. So it gets the segments whose length comes again in every
batch: whole groups, half groups, whole rows. What documents leave over has any length, and goes to `varlen_attn`.

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension; h and h_kv heads of one range.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from longlora.attention import sdpa, varlen
from longlora.attention.by_range import attend_by_range
from longlora.attention.cuts import CutPoints, HeadRange, Run, Segments


def attend(
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H_kv D"],
    value: Float[Tensor, "N H_kv D"],
    cuts: CutPoints,
    *,
    scale: float | None = None,
    shortest: int,
) -> Float[Tensor, "N H D"]:
    """Run causal attention inside every segment; regular ones of `shortest` tokens and more by SDPA."""

    def attend_range(query: Tensor, key: Tensor, value: Tensor, heads: HeadRange) -> Tensor:
        parts = cuts.once(
            ("by length", heads.shifted, shortest, query.device),
            lambda: _parts(cuts, shortest, query.device, shifted=heads.shifted),
        )
        queries = query.split([part.num_queries for part in parts])
        keys, values = (tensor.split([part.num_keys for part in parts]) for tensor in (key, value))
        outputs = [
            sdpa.attend_run(q, k, v, part.kernel, scale=scale)
            if isinstance(part.kernel, Run)
            else varlen.attend_segments(q, k, v, part.kernel, scale)
            for part, q, k, v in zip(parts, queries, keys, values, strict=True)
        ]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]  # (N, h, D)

    return attend_by_range(attend_range, query, key, value, cuts)


@dataclass(frozen=True)
class _Part:
    """Neighbouring segments that go to one call: a run for SDPA, or segments for `varlen_attn`."""

    kernel: Run | Segments
    num_queries: int
    num_keys: int


def _parts(cuts: CutPoints, shortest: int, device: torch.device, *, shifted: bool) -> tuple[_Part, ...]:
    runs = cuts.runs(shifted=shifted)
    parts = []
    for by_sdpa, same in groupby(runs, lambda run: run.length >= shortest and is_regular(run, cuts)):
        runs_of_part = list(same)
        if by_sdpa:
            parts += [_part(run, [run]) for run in runs_of_part]
        else:
            lengths = [run.length for run in runs_of_part for _ in range(run.count)]
            sinks = [run.sinks for run in runs_of_part for _ in range(run.count)]
            parts.append(_part(Segments.of(lengths, sinks, device), runs_of_part))
    return tuple(parts)


def _part(kernel: Run | Segments, runs: list[Run]) -> _Part:
    return _Part(
        kernel,
        num_queries=sum(run.count * run.length for run in runs),
        num_keys=sum(run.count * (run.sinks + run.length) for run in runs),
    )


def is_regular(run: Run, cuts: CutPoints) -> bool:
    """Whether segments of this length come again in every batch: groups, half groups, or rows as they are."""
    whole_rows = run.count * run.length == cuts.num_tokens
    return whole_rows or (cuts.group_size is not None and run.length in (cuts.group_size, cuts.group_size // 2))
