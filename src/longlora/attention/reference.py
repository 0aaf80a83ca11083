"""The definition of S²-Attn, with an explicit mask: slow, and what every fast path must equal.

B batch rows, H query heads, H_kv key-value heads, T tokens of a row, D head dimension, g group size.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def s2_attention_reference(
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
) -> Float[Tensor, "B H T D_v"]:
    """Attend causally within groups, the second half of the heads with groups shifted by half a group.

    Token t of a document (counted from the document's first token) belongs to group ⌊t / g⌋ in the first ⌈H/2⌉ heads
    and to group ⌊(t - ⌊g/2⌋) / g⌋ in the others; a token attends to itself and to earlier tokens of its own document
    and group. This is the strictly causal form of section 3.2 (variant 2 of the paper's table 8): the rolled form of
    algorithm 1 joins the last half group to the first, while here both are separate. Without `shift`, all heads have
    the groups of the first half (the paper's table 6, "w/o shift" in its table 1).

    With `sink_tokens` N above 0 (the paper has 0), a token in any group also attends to those of the first N tokens of
    its document that are not after it: pretrained models have an attention sink there (StreamingLLM, arXiv 2309.17453,
    section 3.1). If N is at least the length of the document, this is full causal attention.

    `cu_seqlens` contains the document boundaries in the flattened batch, from 0 to B·T; rows are always cut. False in
    `padding_mask` marks padding: a stretch of it is treated as a separate document, so its outputs are finite but
    meaningless.

    `softcap` c bounds the scores, after scaling and before the mask: s becomes c · tanh(s / c), as in Gemma 2 (arXiv
    2408.00118, "Logit soft-capping").

    `sinks` contains one learned logit a_h for each query head h. It appears in the softmax's denominator and has no
    value: the weight of key j is exp(s_j) / (exp(a_h) + Σ_i exp(s_i)), as in gpt-oss (arXiv 2508.10925; in
    transformers the parameter `sinks` of `GptOssAttention`). It is neither scaled nor capped.

    Memory: O(B·H·T²).
    """
    num_heads = query.shape[1]
    mask = s2_mask(
        query,
        group_size=group_size,
        shift=shift,
        sink_tokens=sink_tokens,
        cu_seqlens=cu_seqlens,
        padding_mask=padding_mask,
    )  # (B, H, T, T)
    repeats = num_heads // key.shape[1]
    key = key.repeat_interleave(repeats, dim=1)  # (B, H, T, D)
    value = value.repeat_interleave(repeats, dim=1)  # (B, H, T, D_v)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.transpose(-1, -2)) * scale  # (B, H, T, T)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is None:
        return scores.softmax(dim=-1) @ value  # (B, H, T, D_v)
    sink_scores = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)  # (B, H, T, 1)
    weights = torch.cat([scores, sink_scores], dim=-1).softmax(dim=-1)  # (B, H, T, T+1)
    return weights[..., :-1] @ value  # (B, H, T, D_v)


def s2_mask(
    query: Float[Tensor, "B H T D"],
    *,
    group_size: int,
    shift: bool = True,
    sink_tokens: int = 0,
    cu_seqlens: Int[Tensor, " documents_plus_1"] | None = None,
    padding_mask: Bool[Tensor, "B T"] | None = None,
) -> Bool[Tensor, "B H T T"]:
    """Return which query (third axis) sees which key (fourth axis)."""
    batch_size, num_heads, num_tokens, _ = query.shape
    device = query.device
    is_first = torch.zeros(batch_size, num_tokens, dtype=torch.bool, device=device)  # (B, T)
    is_first[:, 0] = True
    if cu_seqlens is not None:
        is_first.view(-1)[cu_seqlens[cu_seqlens < is_first.numel()].long()] = True
    if padding_mask is not None:
        is_first[:, 1:] |= padding_mask[:, 1:] != padding_mask[:, :-1]
    time = torch.arange(num_tokens, device=device).expand(batch_size, num_tokens)  # (B, T)
    document = is_first.cumsum(dim=1)  # (B, T)
    position = time - torch.where(is_first, time, 0).cummax(dim=1).values  # (B, T), from the document's first token

    unshifted_group = position.div(group_size, rounding_mode="floor")  # (B, T)
    shifted_group = (position - group_size // 2).div(group_size, rounding_mode="floor")  # (B, T)
    is_shifted = shift & (torch.arange(num_heads, device=device) >= (num_heads + 1) // 2)  # (H,)
    group = torch.where(is_shifted[:, None], shifted_group[:, None], unshifted_group[:, None])  # (B, H, T)

    same_group = group[..., :, None] == group[..., None, :]  # (B, H, T, T)
    is_sink = (position < sink_tokens)[:, None, None]  # (B, 1, 1, T)
    same_document = (document[:, :, None] == document[:, None, :])[:, None]  # (B, 1, T, T)
    causal = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()  # (T, T)
    return (same_group | is_sink) & same_document & causal
