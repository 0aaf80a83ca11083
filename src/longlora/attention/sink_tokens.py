"""Keys and values with copies of the sink tokens before each segment, for kernels that work on segments.

A segment that begins s tokens into its document is preceded by copies of the document's first min(sink_tokens, s)
tokens. They are gathered once for each range of heads; the indices are computed once per forward pass.

N tokens of the batch, R rows with the copies, C copies, h_kv key-value heads of a range, D head dimension.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from longlora.attention.cuts import CutPoints


@dataclass(frozen=True)
class _Rows:
    """The mapping between tokens and rows."""

    token: Int[Tensor, " R"]
    """The token of each row."""
    own: Int[Tensor, " N"]
    """The row of each token in its own segment."""
    copies: Int[Tensor, " C"]
    """The rows of copies, grouped by token."""
    copied: Int[Tensor, " sinks"]
    """The tokens that have copies, ascending."""
    num_copies: Int[Tensor, " sinks"]
    """How many copies each of them has."""


def with_sink_tokens(tensor: Float[Tensor, "N h_kv D"], cuts: CutPoints, *, shifted: bool) -> Float[Tensor, "R h_kv D"]:
    """Insert copies of its sink tokens before each segment; if there are none, return the tensor itself.

    A token's gradient is the sum over its copies, accumulated in float32 (float64 for float64) and deterministically.
    """
    if not any(cuts.sinks(shifted=shifted)):
        return tensor
    rows = cuts.once(("sink rows", shifted, tensor.device), lambda: _rows(cuts, tensor.device, shifted=shifted))
    return _Gather.apply(tensor, rows)


class _Gather(torch.autograd.Function):
    """Gather rows; the backward pass of indexing would sum gradients by atomic additions in the tensor's own type."""

    @staticmethod
    def forward(tensor: Tensor, rows: _Rows) -> Tensor:
        return tensor.index_select(0, rows.token)  # (R, h_kv, D)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Rows], output: Tensor) -> None:
        ctx.rows = inputs[1]

    @staticmethod
    def backward(ctx: Any, d_gathered: Tensor) -> tuple[Tensor, None]:
        rows: _Rows = ctx.rows
        d_tensor = d_gathered.index_select(0, rows.own)  # (N, h_kv, D)
        sum_dtype = torch.promote_types(d_gathered.dtype, torch.float32)
        of_copies = d_gathered.index_select(0, rows.copies).to(sum_dtype).flatten(1)  # (C, h_kv · D)
        sums = torch.segment_reduce(of_copies, "sum", lengths=rows.num_copies, unsafe=True)  # (sinks, h_kv · D)
        sums = sums.view(-1, *d_tensor.shape[1:]) + d_tensor.index_select(0, rows.copied)  # (sinks, h_kv, D)
        return d_tensor.index_copy(0, rows.copied, sums.to(d_tensor.dtype)), None


def _rows(cuts: CutPoints, device: torch.device, *, shifted: bool) -> _Rows:
    """Compute the rows on the CPU, where the cuts are, and move them to the device."""
    segments = cuts.segments(torch.device("cpu"), shifted=shifted)
    first_token = segments.boundaries[:-1].long()  # (segments,)
    boundaries = segments.key_boundaries.long()  # (segments + 1,)
    sinks, starts = (torch.tensor(numbers) for numbers in (cuts.sinks(shifted=shifted), cuts.starts(shifted=shifted)))
    segment = torch.arange(len(sinks)).repeat_interleave(boundaries.diff())  # (R,)
    place = torch.arange(int(boundaries[-1])) - boundaries[segment]  # (R,), within the segment and its sinks
    is_copy = place < sinks[segment]  # (R,)
    token = place + torch.where(is_copy, starts[segment], (first_token - sinks)[segment])  # (R,)

    copies = is_copy.nonzero().flatten()  # (C,), by segment
    copies = copies[token[copies].argsort(stable=True)]  # by token
    copied, num_copies = token[copies].unique_consecutive(return_counts=True)  # (sinks,) each
    own = (~is_copy).nonzero().flatten()  # (N,): segments are in the order of their tokens
    return _Rows(*(tensor.to(device, non_blocking=True) for tensor in (token, own, copies, copied, num_copies)))
