"""Segments by torch's public scaled dot-product attention: any device, one call for each run of equal segments.

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension; h and h_kv heads of one range.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from longlora.attention.by_range import attend_by_range
from longlora.attention.cuts import CutPoints, HeadRange, Run


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
        num_queries = [run.count * run.length for run in runs]
        num_keys = [run.count * (run.sinks + run.length) for run in runs]
        # One split and one concatenation: their gradients are a concatenation and views, whatever the number of runs.
        parts = zip(runs, query.split(num_queries), key.split(num_keys), value.split(num_keys), strict=True)
        outputs = []
        outputs = [attend_run(q, k, v, run, scale=scale) for run, q, k, v in parts]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]  # (N, h, D_v)

    return attend_by_range(attend_range, query, key, value, cuts)


def attend_run(
    query: Float[Tensor, "queries h D"],
    key: Float[Tensor, "keys h_kv D"],
    value: Float[Tensor, "keys h_kv D_v"],
    run: Run,
    *,
    scale: float | None,
) -> Float[Tensor, "queries h D_v"]:
    """Run causal attention inside the segments of one run, in one call."""
    q, k, v = (tensor.unflatten(0, (run.count, -1)).transpose(1, 2) for tensor in (query, key, value))
    # (count, h, length, D) and (count, h_kv, sinks + length, D)
    # The kernels' causal mask is aligned at the first key, so queries that mean nothing stand beside the sinks.
    q = pad(q, (0, 0, run.sinks, 0)) if run.sinks else q  # (count, h, sinks + length, D)
    output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return output[:, :, run.sinks :].transpose(1, 2).flatten(0, 1)  # (queries, h, D_v)
