"""Attention in plain torch operations: any device, with what the fused kernels lack (softcap, sinks).

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension; h and h_kv heads of one range.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longlora.attention.cuts import CutPoints, HeadRange, Run
from longlora.attention.pieces import Piece, attend_in_pieces, piece_of

_MOST_SCORES = 2**24  # in memory at a time; the backward pass holds about four such tensors, 256 MiB in float32
_MOST_ROWS = 512  # queries of a segment scored at a time, against the keys up to the last of them


def attend(
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H_kv D"],
    value: Float[Tensor, "N H_kv D_v"],
    cuts: CutPoints,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    window: int | None = None,
) -> Float[Tensor, "N H D_v"]:
    """Run causal attention inside every segment, one block of queries at a time.

    The backward pass recomputes the scores of each block, so at most one block of scores is in memory.
    Differentiable any number of times.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale

    def attend_piece(query: Tensor, key: Tensor, value: Tensor, run: Run, heads: HeadRange) -> Tensor:
        range_sinks = None if sinks is None else sinks[heads.query]  # (h,)
        q, k, v = (tensor.unflatten(0, (run.num_segments, -1)).transpose(1, 2) for tensor in (query, key, value))
        # (count, h, length, D) and (count, h_kv, sinks + length, D)
        blocks = []
        for start, stop in _blocks(run.length, run.num_segments * query.shape[1]):
            seen = slice(0 if window is None else max(0, start - window + 1), run.sinks + stop)
            blocks.append(
                _attend_block(q[:, :, start:stop], k[:, :, seen], v[:, :, seen], scale, softcap, range_sinks, window)
            )
        return torch.cat(blocks, dim=2).transpose(1, 2).flatten(0, 1)  # (count · length, h, D_v)

    return attend_in_pieces(attend_piece, lambda heads: _pieces(cuts, heads), query, key, value, cuts)


def _pieces(cuts: CutPoints, heads: HeadRange) -> list[Piece[Run]]:
    num_heads = heads.query.stop - heads.query.start
    return [piece_of(part, [part]) for part in _parts(cuts.runs(shifted=heads.shifted), num_heads=num_heads)]


def _parts(runs: tuple[Run, ...], *, num_heads: int) -> Iterator[Run]:
    """Split runs into parts whose scores stay within the limit; a part is at least one segment."""
    for length, count, sinks in runs:
        most = max(1, _MOST_SCORES // (num_heads * length * min(length, _MOST_ROWS)))
        for first in range(0, count, most):
            yield Run(length, min(most, count - first), sinks)


def _blocks(length: int, num_rows: int) -> Iterator[tuple[int, int]]:
    """Split the queries of a segment, where `num_rows` (segments × heads) are computed together."""
    size = max(1, min(_MOST_ROWS, _MOST_SCORES // (num_rows * length)))
    for start in range(0, length, size):
        yield start, min(start + size, length)


def _attend_block(
    query: Float[Tensor, "count h rows D"],
    key: Float[Tensor, "count h_kv seen D"],
    value: Float[Tensor, "count h_kv seen D_v"],
    scale: float,
    softcap: float | None,
    sinks: Float[Tensor, " h"] | None,
    window: int | None,
) -> Float[Tensor, "count h rows D_v"]:
    """Attend from the last queries of the `seen` tokens, saving only the inputs for the backward pass."""
    if not torch.is_grad_enabled():
        return _weigh(query, key, value, scale, softcap, sinks, window)
    return checkpoint(
        _weigh, query, key, value, scale, softcap, sinks, window, use_reentrant=False, preserve_rng_state=False
    )


def _weigh(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    window: int | None,
) -> Tensor:
    num_kv_heads, num_seen = key.shape[1:3]
    grouped = query.unflatten(1, (num_kv_heads, -1))  # (count, h_kv, h / h_kv, rows, D)
    scores = (grouped * scale) @ key.unsqueeze(2).transpose(-1, -2)  # (count, h_kv, h / h_kv, rows, seen)
    # In float32 like the fused kernels, for every input type: float16 products may need it, and their sums do.
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    num_rows = query.shape[2]
    diagonal = num_seen - num_rows  # of each query's own key
    visible = torch.ones(num_rows, num_seen, dtype=torch.bool, device=query.device).tril(diagonal)
    if window is not None:
        visible = visible.triu(diagonal - window + 1)
    scores = scores.masked_fill(~visible, -torch.inf)
    log_sums = scores.logsumexp(dim=-1, keepdim=True)  # (count, h_kv, h / h_kv, rows, 1)
    if sinks is not None:
        by_head = sinks.to(scores.dtype).view(num_kv_heads, -1, 1, 1)  # (h_kv, h / h_kv, 1, 1)
        log_sums = torch.logaddexp(log_sums, by_head)
    weights = (scores - log_sums).exp().to(value.dtype)  # (count, h_kv, h / h_kv, rows, seen)
    return (weights @ value.unsqueeze(2)).flatten(1, 2)  # (count, h, rows, D_v)
