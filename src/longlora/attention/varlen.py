"""Segments by kernels for variable lengths on CUDA: torch's `varlen_attn`, or the flash-attn that the user installed.

Both take the tokens where they lie and the borders of the segments; each range of heads is one call.

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension; h and h_kv heads of one range.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import varlen

from longlora.attention.by_range import attend_by_range
from longlora.attention.cuts import CutPoints, HeadRange

# FlashAttention 3 before 2: who has installed the one for newer cards wants it.
_FLASH_MODULES = ("flash_attn_interface", "flash_attn")


def attend(
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H_kv D"],
    value: Float[Tensor, "N H_kv D"],
    cuts: CutPoints,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "N H D"]:
    """Run causal attention inside every segment by `torch.nn.attention.varlen.varlen_attn`."""

    def attend_range(query: Tensor, key: Tensor, value: Tensor, heads: HeadRange) -> Tensor:
        borders = cuts.borders(query.device, shifted=heads.shifted)  # (segments + 1,)
        longest = cuts.longest(shifted=heads.shifted)
        output = varlen.varlen_attn(
            query,
            key,
            value,
            borders,
            borders,
            longest,
            longest,
            scale=scale,
            window_size=_before_and_after(window),
            **_grouped(query.shape[1] != key.shape[1]),
        )
        assert isinstance(output, Tensor)  # a pair only where `return_aux` asks for it
        return output

    return attend_by_range(attend_range, query, key, value, cuts)


def _before_and_after(window: int | None) -> tuple[int, int]:
    """Say how many tokens before and after its own a query sees; -1 is their word for all."""
    return (-1 if window is None else window - 1, 0)


def _grouped(is_grouped: bool) -> dict[str, Any]:
    """Ask for grouped queries where torch wants to be asked.

    torch 2.12 and 2.13 demand `enable_gqa`; earlier forms of the function know no such argument and let the kernel find
    out from the shapes. Ends when torch below 2.12 is no longer supported.
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
    """Run causal attention inside every segment by flash-attn 3 or 2, whichever is installed.

    Both return log-sum-exps through which no gradient flows, so sinks are beyond them.
    """
    flash_attention = flash_function()
    assert flash_attention is not None  # the choice of the backend has looked

    def attend_range(query: Tensor, key: Tensor, value: Tensor, heads: HeadRange) -> Tensor:
        borders = cuts.borders(query.device, shifted=heads.shifted)  # (segments + 1,)
        longest = cuts.longest(shifted=heads.shifted)
        output = flash_attention(
            query,
            key,
            value,
            cu_seqlens_q=borders,
            cu_seqlens_k=borders,
            max_seqlen_q=longest,
            max_seqlen_k=longest,
            softmax_scale=scale,
            causal=True,
            window_size=_before_and_after(window),
            softcap=softcap or 0.0,  # 0 is their word for none
        )
        return output[0] if isinstance(output, tuple) else output  # early versions of 3 add the log-sum-exps

    return attend_by_range(attend_range, query, key, value, cuts)


@cache
def flash_function() -> Callable | None:
    """Return the user's `flash_attn_varlen_func`, of flash-attn 3 or else 2, or None."""
    for module in _FLASH_MODULES:
        try:
            return importlib.import_module(module).flash_attn_varlen_func
        except (ImportError, AttributeError):  # not there, or built for another CUDA or torch
            continue
    return None
