"""Attention with torch's `scaled_dot_product_attention`: any device, one call for each run of equal segments.

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension; h and h_kv heads of one range.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longlora.attention.cuts import CutPoints, HeadRange, Run
from longlora.attention.pieces import Piece, attend_in_pieces, piece_of


def attend(
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H_kv D"],
    value: Float[Tensor, "N H_kv D_v"],
    cuts: CutPoints,
    *,
    scale: float | None = None,
) -> Float[Tensor, "N H D_v"]:
    """Run causal attention inside every segment."""

    def attend_piece(query: Tensor, key: Tensor, value: Tensor, run: Run, _: HeadRange) -> Tensor:
        return attend_run(query, key, value, run, scale=scale)

    return attend_in_pieces(attend_piece, lambda heads: run_by_run(cuts, heads), query, key, value, cuts)


def run_by_run(cuts: CutPoints, heads: HeadRange) -> list[Piece[Run]]:
    """Return one piece for each run of equal segments."""
    return [piece_of(run, [run]) for run in cuts.runs(shifted=heads.shifted)]


def attend_run(
    query: Float[Tensor, "queries h D"],
    key: Float[Tensor, "keys h_kv D"],
    value: Float[Tensor, "keys h_kv D_v"],
    run: Run,
    *,
    scale: float | None,
) -> Float[Tensor, "count length h D_v"]:
    """Run causal attention inside the segments of one run, in one call."""
    q, k, v = (tensor.unflatten(0, (run.num_segments, -1)) for tensor in (query, key, value))
    # (count, length, h, D) and (count, sinks + length, h_kv, D)
    if run.sinks:
        # The kernels align the causal mask at the first key, so the sinks need dummy queries.
        q = torch.cat([q.new_zeros(run.num_segments, run.sinks, *q.shape[2:]), q], dim=1)
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    output = output.transpose(1, 2)  # (count, sinks + length, h, D_v)
    # Split rather than slice: the gradient is then a concatenation, without an intermediate tensor of zeros.
    return output.split([run.sinks, run.length], dim=1)[1] if run.sinks else output
