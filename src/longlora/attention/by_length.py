"""Run each segment with the fastest kernel for its length: long ones with SDPA on views, the rest with `varlen_attn`.

On some cards SDPA uses a kernel (cuDNN's) that is far faster than the FlashAttention 2 behind `varlen_attn`, but needs
one call per length and a setup for each new shape. So it gets the segments whose lengths recur in every batch: whole
groups, half groups, whole rows. Remainders of documents have arbitrary lengths, and go to `varlen_attn`.

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension; h and h_kv heads of one range.
"""

from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from longlora.attention import sdpa, varlen
from longlora.attention.cuts import CutPoints, HeadRange, Run, Segments
from longlora.attention.pieces import Piece, attend_in_pieces, piece_of


def attend(
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H_kv D"],
    value: Float[Tensor, "N H_kv D"],
    cuts: CutPoints,
    *,
    scale: float | None = None,
    shortest: int,
) -> Float[Tensor, "N H D"]:
    """Run causal attention inside every segment, with SDPA for regular segments of at least `shortest` tokens."""

    def attend_piece(query: Tensor, key: Tensor, value: Tensor, call: Run | Segments, _: HeadRange) -> Tensor:
        if isinstance(call, Run):
            return sdpa.attend_run(query, key, value, call, scale=scale)
        return varlen.attend_segments(query, key, value, call, scale)

    return attend_in_pieces(
        attend_piece, lambda heads: _pieces_once(cuts, shortest, query.device, heads.shifted), query, key, value, cuts
    )


def _pieces_once(cuts: CutPoints, shortest: int, device: torch.device, shifted: bool) -> list[Piece[Run | Segments]]:
    key = ("by length", shifted, shortest, device)
    return cuts.once(key, lambda: _pieces(cuts, shortest, device, shifted=shifted))


def _pieces(cuts: CutPoints, shortest: int, device: torch.device, *, shifted: bool) -> list[Piece[Run | Segments]]:
    pieces: list[Piece[Run | Segments]] = []
    runs = cuts.runs(shifted=shifted)
    for by_sdpa, same in groupby(runs, lambda run: run.length >= shortest and is_regular(run, cuts)):
        runs_of_kind = list(same)
        if by_sdpa:
            pieces += [piece_of(run, [run]) for run in runs_of_kind]
        else:
            lengths = [run.length for run in runs_of_kind for _ in range(run.num_segments)]
            sinks = [run.sinks for run in runs_of_kind for _ in range(run.num_segments)]
            pieces.append(piece_of(Segments.of(lengths, sinks, device), runs_of_kind))
    return pieces


def is_regular(run: Run, cuts: CutPoints) -> bool:
    """Return whether segments of this length recur in every batch: groups, half groups, or whole rows."""
    whole_rows = run.num_segments * run.length == cuts.num_tokens
    return whole_rows or (cuts.group_size is not None and run.length in (cuts.group_size, cuts.group_size // 2))
