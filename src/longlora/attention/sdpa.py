"""Segments by torch's public scaled dot-product attention: any device, one call for each run of equal segments.

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension; h and h_kv heads of one range.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longlora.attention.by_range import attend_by_range
from longlora.attention.cuts import CutPoints, HeadRange


def attend(
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H_kv D"],
    value: Float[Tensor, "N H_kv D_v"],
    cuts: CutPoints,
    *,
    scale: float | None = None,
) -> Float[Tensor, "N H D_v"]:
    """Run causal attention inside every segment."""

    def attend_range(query: Tensor, key: Tensor, value: Tensor, heads: HeadRange) -> Tensor:
        runs = cuts.runs(shifted=heads.shifted)
        sizes = [length * count for length, count in runs]
        # One split and one concatenation: their gradients are a concatenation and views, whatever the number of runs.
        parts = zip(runs, query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
        outputs = []
        for (length, _), *tensors in parts:
            q, k, v = (tensor.unflatten(0, (-1, length)).transpose(1, 2) for tensor in tensors)  # (count, h, length, D)
            output = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )  # (count, h, length, D_v)
            outputs.append(output.transpose(1, 2).flatten(0, 1))  # (count · length, h, D_v)
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]  # (N, h, D_v)

    return attend_by_range(attend_range, query, key, value, cuts)
