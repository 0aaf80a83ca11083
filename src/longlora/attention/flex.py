"""All heads in one FlexAttention call, with softcap and sinks; the mask depends on the head.

The batch is one row of N tokens; the cut points of both halves become a sparse block mask. On CUDA the kernel is
compiled on first use. On the CPU torch has no backward pass for it, and uncompiled it is ordinary operations with all
N² scores in memory: for testing only.

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension, b blocks of `BLOCK_SIZE` tokens.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from longlora.attention.cuts import CutPoints

BLOCK_SIZE = 128  # tokens; FlexAttention's own choice


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
    """Run causal attention inside every segment.

    Memory beyond inputs and output: the mask, 16·H·(N/128)² bytes, built once per forward pass.
    """
    num_heads = query.shape[1]
    mask = cuts.once(
        ("flex", num_heads, window, query.device),
        lambda: block_mask(cuts, num_heads=num_heads, window=window, device=query.device),
    )
    if not torch.is_grad_enabled():  # even then, the CPU kernel refuses tensors that require gradients
        query, key, value = query.detach(), key.detach(), value.detach()
    q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))  # (1, H or H_kv, N, D)
    kernel: Any = _compiled() if query.is_cuda else flex_attention
    output, aux = kernel(
        q,
        k,
        v,
        score_mod=None if softcap is None else _capped_at(softcap),
        block_mask=mask,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
        return_aux=AuxRequest(lse=sinks is not None),
    )  # (1, H, N, D_v) and (1, H, N)
    if sinks is not None:
        # exp(s) / (exp(a) + Σ exp(s)) = softmax(s) · sigmoid(log Σ exp(s) - a)
        share = (aux.lse - sinks.to(aux.lse.dtype)[:, None]).sigmoid()  # (1, H, N)
        output = (output * share.unsqueeze(-1)).to(output.dtype)
    return output.squeeze(0).transpose(0, 1)  # (N, H, D_v)


@cache
def _compiled() -> Callable:
    # Beyond its recompilation limit, the compiler would fall back to eager, with all N² scores: an error is better.
    return torch.compile(flex_attention, fullgraph=True)


@cache  # the compiler recognizes functions by identity
def _capped_at(softcap: float) -> Callable:
    return lambda score, batch, head, query, key: softcap * torch.tanh(score / softcap)


def block_mask(cuts: CutPoints, *, num_heads: int, device: torch.device, window: int | None = None) -> BlockMask:
    """Build the sparse mask of the segments, per head according to its half, without an intermediate N × N mask."""
    starts = torch.stack([_starts(cuts.lengths(shifted=shifted), device) for shifted in cuts.halves])  # (halves, N)
    if window is not None:
        starts = starts.maximum(torch.arange(cuts.num_tokens, device=device) - window + 1)
    half_of_head = (torch.arange(num_heads, device=device) >= cuts.num_unshifted(num_heads)).long()  # (H,)
    sees = _sees_group(starts, half_of_head)
    first_sinks = None
    if cuts.sink_tokens:
        first_sinks = _starts(cuts.documents, device)  # (N,)
        sees = _sees_group_or_sinks(sees, first_sinks, cuts.sink_tokens)

    partial_and_full = [_blocks_of_half(row, first_sinks, cuts.sink_tokens) for row in starts]
    num_partial, partial, num_full, full = (
        torch.stack(rows)[half_of_head].unsqueeze(0) for rows in zip(*partial_and_full, strict=True)
    )  # (1, H, b) and (1, H, b, b), twice
    return BlockMask.from_kv_blocks(
        num_partial,
        partial,
        num_full,
        full,
        BLOCK_SIZE=BLOCK_SIZE,
        mask_mod=sees,
        seq_lengths=(cuts.num_tokens, cuts.num_tokens),
    )  # (1, H, N, N)


def _sees_group(starts: Int[Tensor, "halves N"], half_of_head: Int[Tensor, " H"]) -> Callable:
    return lambda batch, head, query, key: (key <= query) & (key >= starts[half_of_head[head], query])


def _sees_group_or_sinks(sees_group: Callable, first_sinks: Int[Tensor, " N"], num_sinks: int) -> Callable:
    return lambda batch, head, query, key: (
        sees_group(batch, head, query, key)
        | (key <= query) & (key >= first_sinks[query]) & (key < first_sinks[query] + num_sinks)
    )


def _starts(lengths: Sequence[int], device: torch.device) -> Int[Tensor, " N"]:
    """Return for each token the first token of its segment or document."""
    sizes = torch.tensor(lengths)
    return (sizes.cumsum(0) - sizes).repeat_interleave(sizes).to(device, non_blocking=True)


def _blocks_of_half(
    starts: Int[Tensor, " N"], first_sinks: Int[Tensor, " N"] | None, num_sinks: int
) -> tuple[Int[Tensor, " b"], Int[Tensor, "b b"], Int[Tensor, " b"], Int[Tensor, "b b"]]:
    """Return counts and indices of the key blocks that each query block sees partially, and of those it sees fully.

    Each query sees a contiguous stretch of keys that starts no earlier than the previous query's. So a query block sees
    the blocks from the one that contains its first query's first key up to itself, and fully those of them that precede
    it and do not start before its last query's first key. Sink tokens outside the query block belong to the document of
    its first token, since other documents start within it.
    """
    num_tokens, device = starts.shape[0], starts.device
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    block = torch.arange(num_blocks, device=device)  # (b,)
    first_token = block * BLOCK_SIZE
    last_token = (first_token + BLOCK_SIZE - 1).clamp(max=num_tokens - 1)
    first_seen = starts[first_token, None] // BLOCK_SIZE  # (b, 1)
    first_full = (starts[last_token, None] + BLOCK_SIZE - 1) // BLOCK_SIZE

    is_before = block < block[:, None]  # (b, b)
    is_full = (block >= first_full) & is_before
    is_seen = (block >= first_seen) & is_before
    if first_sinks is not None:
        first_sink = first_sinks[first_token, None]  # (b, 1)
        is_seen |= (
            (block >= first_sink // BLOCK_SIZE) & (block <= (first_sink + num_sinks - 1) // BLOCK_SIZE) & is_before
        )
    is_partial = (is_seen & ~is_full) | (block == block[:, None])
    return *_named(is_partial), *_named(is_full)


def _named(blocks: Bool[Tensor, "b b"]) -> tuple[Int[Tensor, " b"], Int[Tensor, "b b"]]:
    """Return for each row the number of marked blocks, and the indices of all blocks, marked ones first."""
    return blocks.sum(dim=1, dtype=torch.int32), blocks.int().argsort(dim=1, descending=True, stable=True).int()
