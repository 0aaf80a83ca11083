"""S²-Attn as variable-length causal attention whose cut points differ between the two halves of the heads.

Packed documents are more cut points, and so are padding and the rows of a batch. Nothing is rolled, wrapped or
repeated: on CUDA each half is one call of `torch.nn.attention.varlen.varlen_attn` on a strided view; elsewhere it is
one call of scaled dot-product attention for every run of segments of equal length, on views too.

B batch rows, H query heads, H_kv key-value heads, T tokens of a row, N = B·T tokens of the batch, D head dimension.
"""

from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class CutPoints:
    """Where the flattened batch of N tokens is cut, for each half of the heads, as lengths of segments that sum to N.

    `shifted` is None when all heads share the cuts of `unshifted`: full causal attention within documents.
    """

    unshifted: tuple[int, ...]
    shifted: tuple[int, ...] | None


def s2_attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H_kv T D"],
    value: Float[Tensor, "B H_kv T D"],
    *,
    group_size: int,
    scale: float | None = None,
    cu_seqlens: Int[Tensor, " documents_plus_1"] | None = None,
    padding_mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B H T D"]:
    """Attend causally within groups, the second half of the heads with groups shifted by half a group.

    Defined by, and equal to, `longlora.attention.reference.s2_attention_reference`, which describes the arguments.
    Cost with g = T/4: 0.234 of the query-key pairs of full causal attention; memory as the inputs (no mask, no scores).

    Example:
        >>> import torch
        >>> from longlora.attention import s2_attention
        >>> q, k, v = torch.randn(3, 1, 8, 1024, 64)
        >>> s2_attention(q, k, v, group_size=256).shape
        torch.Size([1, 8, 1024, 64])

    Raises:
        ValueError: `group_size` below 1, `cu_seqlens` that do not run from 0 to N, a padding mask with holes.
    """
    cuts = cut_points(
        query.shape[0], query.shape[2], group_size=group_size, cu_seqlens=cu_seqlens, padding_mask=padding_mask
    )
    return attend_in_segments(query, key, value, cuts, scale=scale)


def cut_points(
    batch_size: int,
    num_tokens: int,
    *,
    group_size: int | None,
    cu_seqlens: Int[Tensor, " documents_plus_1"] | None = None,
    padding_mask: Bool[Tensor, "B T"] | None = None,
) -> CutPoints:
    """Cut the documents of a batch into groups; `group_size=None` leaves them whole.

    Groups are counted from each document's first token: g, g, g, … for the unshifted heads and ⌊g/2⌋, g, g, … for the
    shifted ones.

    Raises:
        ValueError: as `s2_attention`.
    """
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size must be at least 1 token, got {group_size}")
    documents = _document_lengths(batch_size, num_tokens, cu_seqlens, padding_mask)
    if group_size is None:
        return CutPoints(unshifted=tuple(documents), shifted=None)
    return CutPoints(
        unshifted=tuple(part for length in documents for part in _cut(length, group_size, first=group_size)),
        shifted=tuple(part for length in documents for part in _cut(length, group_size, first=group_size // 2)),
    )


def attend_in_segments(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H_kv T D"],
    value: Float[Tensor, "B H_kv T D"],
    cuts: CutPoints,
    *,
    scale: float | None = None,
) -> Float[Tensor, "B H T D"]:
    """Run causal attention inside every segment, each half of the heads with its own cuts."""
    num_heads, num_tokens = query.shape[1:3]
    # The memory of projections is (B, T, H, D), so tokens first is a view.
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))  # (N, H or H_kv, D)
    if cuts.shifted is None or num_heads == 1:
        output = _attend(query, key, value, cuts.unshifted, scale)  # (N, H, D)
    else:
        middle = (num_heads + 1) // 2
        halves = zip(
            query.split([middle, num_heads - middle], dim=1),  # (N, H/2, D) each
            _split_kv(key, num_heads),  # (N, H_kv/2, D) each
            _split_kv(value, num_heads),
            (cuts.unshifted, cuts.shifted),
            strict=True,
        )
        output = torch.cat([_attend(*half, scale) for half in halves], dim=1)  # (N, H, D)
    return output.unflatten(0, (-1, num_tokens)).transpose(1, 2)  # (B, H, T, D)


def _document_lengths(
    batch_size: int,
    num_tokens: int,
    cu_seqlens: Int[Tensor, " documents_plus_1"] | None,
    padding_mask: Bool[Tensor, "B T"] | None,
) -> list[int]:
    total = batch_size * num_tokens
    borders = set(range(0, total + 1, num_tokens))
    if cu_seqlens is not None:
        given = cu_seqlens.tolist()
        if given[0] != 0 or given[-1] != total or any(left > right for left, right in pairwise(given)):
            raise ValueError(
                f"cu_seqlens must rise from 0 to the {total} tokens of the batch ({batch_size} x {num_tokens}), "
                f"got {given[:3]} … {given[-3:]}"
            )
        borders.update(given)
    if padding_mask is not None:
        changes = padding_mask[:, 1:] != padding_mask[:, :-1]  # (B, T-1)
        if (padding_mask[:, 0].int() + (padding_mask[:, 1:] & changes).sum(dim=1)).max() > 1:
            raise ValueError("padding_mask must be one stretch of real tokens in each row, found one with a hole")
        rows, columns = changes.nonzero(as_tuple=True)
        borders.update((rows * num_tokens + columns + 1).tolist())
    return [right - left for left, right in pairwise(sorted(borders))]


def _cut(length: int, group_size: int, *, first: int) -> list[int]:
    """Cut `length` tokens into a first segment, whole groups, and the rest; empty segments are left out."""
    head = min(first, length)
    num_groups, rest = divmod(length - head, group_size)
    return [part for part in (head, *[group_size] * num_groups, rest) if part > 0]


def _split_kv(tensor: Float[Tensor, "N H_kv D"], num_heads: int) -> tuple[Tensor, ...]:
    """Give each half of the query heads the key-value heads it reads.

    Where the middle of the query heads falls between two key-value heads this is a split into views, and a single
    key-value head serves both halves. Where the middle falls inside one of several key-value heads (H_kv odd), the
    heads are copied out once for each query head.
    """
    num_kv_heads, middle = tensor.shape[1], (num_heads + 1) // 2
    if num_kv_heads == 1:
        return tensor, tensor
    queries_per_kv = num_heads // num_kv_heads
    if middle % queries_per_kv == 0:
        kv_middle = middle // queries_per_kv
        return tensor.split([kv_middle, num_kv_heads - kv_middle], dim=1)
    return tensor.repeat_interleave(queries_per_kv, dim=1).split([middle, num_heads - middle], dim=1)


def _attend(
    query: Float[Tensor, "N h D"],
    key: Float[Tensor, "N h_kv D"],
    value: Float[Tensor, "N h_kv D"],
    segments: tuple[int, ...],
    scale: float | None,
) -> Float[Tensor, "N h D"]:
    if query.is_cuda and torch.is_autocast_enabled("cuda"):  # autocast does not know `varlen_attn`
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    # FlashAttention's limits, which `varlen_attn` inherits.
    fits_flash = query.shape[2] == value.shape[2] and query.shape[2] % 8 == 0 and query.shape[2] <= 256
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and fits_flash:
        return _attend_varlen(query, key, value, segments, scale)
    return _attend_sdpa(query, key, value, segments, scale)


def _attend_varlen(
    query: Float[Tensor, "N h D"],
    key: Float[Tensor, "N h_kv D"],
    value: Float[Tensor, "N h_kv D"],
    segments: tuple[int, ...],
    scale: float | None,
) -> Float[Tensor, "N h D"]:
    from torch.nn.attention.varlen import varlen_attn

    borders = torch.tensor((0, *segments), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    borders = borders.to(query.device, non_blocking=True)  # (segments + 1,)
    longest = max(segments)
    output = varlen_attn(
        query,
        key,
        value,
        borders,
        borders,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)  # a pair only where `return_aux` asks for it
    return output


def _attend_sdpa(
    query: Float[Tensor, "N h D"],
    key: Float[Tensor, "N h_kv D"],
    value: Float[Tensor, "N h_kv D"],
    segments: tuple[int, ...],
    scale: float | None,
) -> Float[Tensor, "N h D"]:
    runs = [(length, len(list(same))) for length, same in groupby(segments)]
    sizes = [length * count for length, count in runs]
    # One split and one concatenation: their gradients are a concatenation and views, whatever the number of runs.
    parts = zip(runs, query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
    outputs = []
    for (length, _), *tensors in parts:
        q, k, v = (tensor.unflatten(0, (-1, length)).transpose(1, 2) for tensor in tensors)  # (count, h, length, D)
        output = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )  # (count, h, length, D)
        outputs.append(output.transpose(1, 2).flatten(0, 1))  # (count · length, h, D)
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]  # (N, h, D)
