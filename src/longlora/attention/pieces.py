"""Attention in pieces: each range of heads is divided into stretches of segments, one kernel call for each.

Kernels get views. Autograd's own split and cat, first by heads and then by tokens, would copy outputs and gradients
twice; here each is written once, directly in its place.

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension; h and h_kv heads of one range.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from longlora.attention.cuts import CutPoints, HeadRange, Run, head_ranges
from longlora.attention.sink_tokens import with_sink_tokens

Call = TypeVar("Call")
Place = tuple[slice, slice]
"""Tokens and heads."""


@dataclass(frozen=True)
class Piece(Generic[Call]):
    """Consecutive segments of one range of heads that one kernel call processes."""

    call: Call
    """Describes to the kernel where the segments are cut."""
    num_queries: int
    num_keys: int
    """Copies of sink tokens included."""


def piece_of(call: Call, runs: Sequence[Run]) -> Piece[Call]:
    """Make a piece from consecutive runs of segments."""
    return Piece(
        call,
        num_queries=sum(run.num_segments * run.length for run in runs),
        num_keys=sum(run.num_segments * (run.sinks + run.length) for run in runs),
    )


def attend_in_pieces(
    attend: Callable[[Tensor, Tensor, Tensor, Call, HeadRange], Tensor],
    pieces: Callable[[HeadRange], Sequence[Piece[Call]]],
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H_kv D"],
    value: Float[Tensor, "N H_kv D_v"],
    cuts: CutPoints,
) -> Float[Tensor, "N H D_v"]:
    """Call `attend` with views of each piece, (queries, h, D) and (keys, h_kv, D), and join its outputs.

    Each output is (queries, h, D_v) or (segments, length, h, D_v). With sink tokens, keys and values are copies in
    which each segment follows its sink tokens.
    """
    ranges = head_ranges(query.shape[1], key.shape[1], cuts)
    pieces_of_ranges = [pieces(heads) for heads in ranges]
    places = [
        (tokens, heads.query)
        for heads, of_range in zip(ranges, pieces_of_ranges, strict=True)
        for tokens in _stretches([piece.num_queries for piece in of_range])
    ]
    queries = iter(_views(query, places))  # (queries, h, D) each
    # Two ranges of query heads may share one key-value head; autograd sums their gradients.
    heads_of_keys = sorted({(heads.key_value.start, heads.key_value.stop) for heads in ranges})
    everything = slice(0, len(query))
    keys, values = (
        dict(zip(heads_of_keys, _views(tensor, [(everything, slice(*heads)) for heads in heads_of_keys]), strict=True))
        for tensor in (key, value)
    )  # (N, h_kv, D) each

    outputs = []
    for heads, of_range in zip(ranges, pieces_of_ranges, strict=True):
        stretches = [(tokens, slice(None)) for tokens in _stretches([piece.num_keys for piece in of_range])]
        own = (heads.key_value.start, heads.key_value.stop)
        k, v = (
            _views(with_sink_tokens(tensors[own], cuts, shifted=heads.shifted), stretches) for tensors in (keys, values)
        )  # (keys, h_kv, D) each
        for piece, one_key, one_value in zip(of_range, k, v, strict=True):
            outputs.append(attend(next(queries), one_key, one_value, piece.call, heads))
    if len(outputs) == 1:
        return outputs[0].flatten(0, -3)  # (N, H, D_v)
    return _Join.apply(places, query.shape[:2], *outputs)


def _stretches(sizes: Sequence[int]) -> list[slice]:
    stretches, first = [], 0
    for size in sizes:
        stretches.append(slice(first, first + size))
        first += size
    return stretches


def _views(tensor: Tensor, places: Sequence[Place]) -> tuple[Tensor, ...]:
    return (tensor,) if len(places) == 1 else _Split.apply(tensor, places)


def _split(tensor: Tensor, places: Sequence[Place]) -> tuple[Tensor, ...]:
    return tuple(tensor[place] for place in places)


def _join(pieces: Sequence[Tensor], places: Sequence[Place], shape: Sequence[int]) -> Tensor:
    joined = pieces[0].new_empty((*shape, pieces[0].shape[-1]))
    for place, piece in zip(places, pieces, strict=True):
        joined[place].unflatten(0, piece.shape[:-2]).copy_(piece)
    return joined


class _Split(torch.autograd.Function):
    """Views of disjoint places that cover a tensor; the backward pass writes their gradients into one tensor."""

    @staticmethod
    def forward(tensor: Tensor, places: Sequence[Place]) -> tuple[Tensor, ...]:
        return _split(tensor, places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Sequence[Place]], output: tuple[Tensor, ...]) -> None:
        tensor, ctx.places = inputs
        ctx.shape = tensor.shape[:2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _join(gradients, ctx.places, ctx.shape), None


class _Join(torch.autograd.Function):
    """Join pieces into the tensor that their places cover; the gradients of the pieces are views."""

    @staticmethod
    def forward(places: Sequence[Place], shape: Sequence[int], *pieces: Tensor) -> Tensor:
        return _join(pieces, places, shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.places, _, *pieces = inputs
        ctx.tokens = [piece.shape[:-2] for piece in pieces]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts = zip(_split(gradient, ctx.places), ctx.tokens, strict=True)
        return (None, None, *(part.unflatten(0, tokens) for part, tokens in parts))
