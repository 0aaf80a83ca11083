"""S²-Attn as variable-length causal attention whose cut points differ between the two halves of the heads.

Packed documents, padding and the rows of a batch only add cut points. Nothing is rolled, wrapped or repeated. The
backend decides which kernel runs the segments; all of them equal the definition in `reference.py`.

B batch rows, H query heads, H_kv key-value heads, T tokens of a row, N = B·T tokens of the batch, D head dimension.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from longlora.attention import by_length, explicit, flex, sdpa, varlen
from longlora.attention.backends import AttentionRequest, Backend, choose_backend, in_autocast_dtype, shortest_for_sdpa
from longlora.attention.cuts import CutPoints, cut_points


def s2_attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H_kv T D"],
    value: Float[Tensor, "B H_kv T D_v"],
    *,
    group_size: int,
    shift: bool = True,
    sink_tokens: int = 0,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, " documents_plus_1"] | None = None,
    padding_mask: Bool[Tensor, "B T"] | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "B H T D_v"]:
    """Attend causally within groups, with `shift` the second half of the heads with groups shifted by half a group.

    Equal to `longlora.attention.reference.s2_attention_reference`, which defines it and describes the arguments;
    `longlora.attention.backends` describes `backend`. Cost with g = T/4: 0.234 of the query-key pairs of full causal
    attention; memory as for the inputs (no mask, no scores). With `sink_tokens` above 0, keys and values are copied for
    each half of the heads, and with the backend `sdpa` also queries and output.

    Example:
        >>> import torch
        >>> from longlora.attention import s2_attention
        >>> q, k, v = torch.randn(3, 1, 8, 1024, 64)
        >>> s2_attention(q, k, v, group_size=256).shape
        torch.Size([1, 8, 1024, 64])

    Raises:
        ConfigError: the backend cannot run these tensors here.
        ValueError: `group_size` below 1, `sink_tokens` below 0, `cu_seqlens` that do not run from 0 to N, a padding
            mask with holes, a softcap that is not above 0, another number of sinks than query heads, query heads that
            are not a multiple of the key-value heads.
    """
    cuts = cut_points(
        query.shape[0],
        query.shape[2],
        group_size=group_size,
        shift=shift,
        sink_tokens=sink_tokens,
        cu_seqlens=cu_seqlens,
        padding_mask=padding_mask,
    )
    return attend_in_segments(query, key, value, cuts, scale=scale, softcap=softcap, sinks=sinks, backend=backend)


def attend_in_segments(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H_kv T D"],
    value: Float[Tensor, "B H_kv T D_v"],
    cuts: CutPoints,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " H"] | None = None,
    window: int | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, "B H T D_v"]:
    """Run causal attention inside every segment, each half of the heads with its own cuts.

    With a `window`, each token sees at most itself and the `window - 1` tokens before it.

    Raises:
        ConfigError: the backend cannot run these tensors here.
        ValueError: a window below 1 or together with sink tokens; invalid softcap, sinks or heads, as for
            `s2_attention`.
    """
    num_heads, num_tokens = query.shape[1:3]
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be above 0, got {softcap}; None leaves the scores as they are")
    if sinks is not None and sinks.shape != (num_heads,):
        raise ValueError(f"sinks must hold one logit for each of the {num_heads} query heads, got {tuple(sinks.shape)}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 token, got {window}; None sets no limit")
    if window is not None and cuts.sink_tokens:
        raise ValueError(f"a window of {window} tokens and {cuts.sink_tokens} sink tokens cannot be combined")
    if window is not None and window >= max(cuts.longest(shifted=shifted) for shifted in cuts.halves):
        window = None  # no segment is longer, and more kernels run without a window
    query, key, value = in_autocast_dtype(query, key, value)
    # Projections are (B, T, H, D) in memory, so putting tokens first needs no copy.
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))  # (N, H or H_kv, D)
    request = AttentionRequest.of(query, key, value, softcap=softcap, sinks=sinks, window=window)
    chosen = choose_backend(backend, request)
    if chosen == "varlen":
        output = varlen.attend(query, key, value, cuts, scale=scale, window=window)  # (N, H, D_v)
    elif chosen == "by_length":
        shortest = shortest_for_sdpa(request.capability) or 1
        output = by_length.attend(query, key, value, cuts, scale=scale, shortest=shortest)
    elif chosen == "flash":
        output = varlen.attend_flash(query, key, value, cuts, scale=scale, softcap=softcap, window=window)
    elif chosen == "flex":
        output = flex.attend(query, key, value, cuts, scale=scale, softcap=softcap, sinks=sinks, window=window)
    elif chosen == "explicit":
        output = explicit.attend(query, key, value, cuts, scale=scale, softcap=softcap, sinks=sinks, window=window)
    else:
        output = sdpa.attend(query, key, value, cuts, scale=scale)
    return output.unflatten(0, (-1, num_tokens)).transpose(1, 2)  # (B, H, T, D_v)
