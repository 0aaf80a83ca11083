"""Attention with variable-length kernels on CUDA: torch's `varlen_attn`, or an installed flash-attn.

Both take the tokens in place and the boundaries of the segments; each range of heads is one call. If a segment has more
keys than queries, because of sink tokens before it, both align the causal mask at the end, as required.

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension; h and h_kv heads of one range.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import varlen

from longlora.attention.cuts import CutPoints, HeadRange, Segments
from longlora.attention.pieces import Piece, attend_in_pieces, piece_of


def attend(
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H_kv D"],
    value: Float[Tensor, "N H_kv D"],
    cuts: CutPoints,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "N H D"]:
    """Run causal attention inside every segment with `torch.nn.attention.varlen.varlen_attn`."""

    def attend_piece(query: Tensor, key: Tensor, value: Tensor, segments: Segments, _: HeadRange) -> Tensor:
        return attend_segments(query, key, value, segments, scale, window)

    return attend_in_pieces(attend_piece, lambda heads: _all_at_once(cuts, heads, query), query, key, value, cuts)


def _all_at_once(cuts: CutPoints, heads: HeadRange, query: Tensor) -> list[Piece[Segments]]:
    segments = cuts.segments(query.device, shifted=heads.shifted)
    return [piece_of(segments, cuts.runs(shifted=heads.shifted))]


def attend_segments(
    query: Float[Tensor, "queries h D"],
    key: Float[Tensor, "keys h_kv D"],
    value: Float[Tensor, "keys h_kv D"],
    segments: Segments,
    scale: float | None,
    window: int | None = None,
) -> Float[Tensor, "queries h D"]:
    """Run causal attention inside segments of one range of heads, in one call."""
    output = varlen.varlen_attn(
        query,
        key,
        value,
        segments.boundaries,
        segments.key_boundaries,
        segments.longest,
        segments.longest_keys,
        scale=scale,
        window_size=_before_and_after(window),
        **_grouped(query.shape[1] != key.shape[1]),
    )
    assert isinstance(output, Tensor)  # a pair only with `return_aux`
    return output


def _before_and_after(window: int | None) -> tuple[int, int]:
    """Return how many tokens before and after its own a query sees, where -1 means all."""
    return (-1 if window is None else window - 1, 0)


def _grouped(is_grouped: bool) -> dict[str, Any]:
    """Return the argument that enables grouped queries, if torch has it.

    torch 2.12 and 2.13 require `enable_gqa`; earlier versions lack the argument, and the kernel infers it from the
    shapes. Remove when torch below 2.12 is no longer supported.
    """
    return {"enable_gqa": is_grouped} if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters else {}


def attend_flash(
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H_kv D"],
    value: Float[Tensor, "N H_kv D"],
    cuts: CutPoints,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "N H D"]:
    """Run causal attention inside every segment with flash-attn 3 or 2, whichever is installed.

    No gradient flows through the log-sum-exps that either returns, so sinks are not supported.
    """
    flash_attention = flash_function()
    assert flash_attention is not None  # checked when the backend was chosen

    def attend_piece(query: Tensor, key: Tensor, value: Tensor, segments: Segments, _: HeadRange) -> Tensor:
        output = flash_attention(
            query,
            key,
            value,
            cu_seqlens_q=segments.boundaries,
            cu_seqlens_k=segments.key_boundaries,
            max_seqlen_q=segments.longest,
            max_seqlen_k=segments.longest_keys,
            softmax_scale=scale,
            causal=True,
            window_size=_before_and_after(window),
            softcap=softcap or 0.0,  # 0 means none
        )
        return output[0] if isinstance(output, tuple) else output  # early versions of 3 also return log-sum-exps

    return attend_in_pieces(attend_piece, lambda heads: _all_at_once(cuts, heads, query), query, key, value, cuts)


def flash_function() -> Callable | None:
    """Return `flash_attn_varlen_func` of the installed flash-attn 3, else of 2, else None."""
    return _function_of("flash_attn_interface") or _function_of("flash_attn")


def has_flash_3() -> bool:
    """Return whether FlashAttention 3 is installed."""
    return _function_of("flash_attn_interface") is not None


@cache
def _function_of(module: str) -> Callable | None:
    try:
        return importlib.import_module(module).flash_attn_varlen_func
    except (ImportError, AttributeError):  # not installed, or built for another CUDA or torch
        return None


def newer_flash_is_active() -> bool:
    """Return whether torch is set to run FlashAttention 3 or 4 instead of 2 (`activate_flash_attention_impl`).

    torch before 2.12 has no such setting. Remove the check when it is no longer supported.
    """
    current = getattr(torch.nn.attention, "current_flash_attention_impl", None)
    return current is not None and current() is not None
