"""Segments by torch's public scaled dot-product attention: any device, one call for each run of equal segments.

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension; h and h_kv heads of one range.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

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
    """Make a piece of each run of equal segments."""
    return [piece_of(run, [run]) for run in cuts.runs(shifted=heads.shifted)]


def attend_run(
    query: Float[Tensor, "queries h D"],
    key: Float[Tensor, "keys h_kv D"],
    value: Float[Tensor, "keys h_kv D_v"],
    run: Run,
    *,
    scale: float | None,
) -> Float[Tensor, "queries h D_v"]:
    """Run causal attention inside the segments of one run, in one call."""
    q, k, v = (tensor.unflatten(0, (run.num_segments, -1)).transpose(1, 2) for tensor in (query, key, value))
    # (count, h, length, D) and (count, h_kv, sinks + length, D)
    # The kernels' causal mask is aligned at the first key, so queries that mean nothing stand beside the sinks.
    q = pad(q, (0, 0, run.sinks, 0)) if run.sinks else q  # (count, h, sinks + length, D)
    output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return output[:, :, run.sinks :].transpose(1, 2).flatten(0, 1)  # (queries, h, D_v)
