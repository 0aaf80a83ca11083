"""Attention range of heads by range of heads, joined by autograd: what the kernels without a shared result need.

N tokens of the batch, H query heads, H_kv key-value heads, D head dimension; h and h_kv heads of one range.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from longlora.attention.cuts import CutPoints, HeadRange, head_ranges
from longlora.attention.sink_tokens import with_sink_tokens

Attend = Callable[[Tensor, Tensor, Tensor, HeadRange], Tensor]


def attend_by_range(
    attend: Attend,
    query: Float[Tensor, "N H D"],
    key: Float[Tensor, "N H_kv D"],
    value: Float[Tensor, "N H_kv D_v"],
    cuts: CutPoints,
) -> Float[Tensor, "N H D_v"]:
    """Call `attend` with views of each range, (N, h, D) and (N, h_kv, D), and join what it returns, (N, h, D_v).

    Where segments see sink tokens, keys and values are copies: those of each segment with its sink tokens before them.
    """
    ranges = head_ranges(query.shape[1], key.shape[1], cuts)
    # One split of each tensor: its gradient is one concatenation.
    queries = query.split([heads.query.stop - heads.query.start for heads in ranges], dim=1)
    stretches = sorted({(heads.key_value.start, heads.key_value.stop) for heads in ranges})  # disjoint, of all H_kv
    sizes = [stop - start for start, stop in stretches]
    keys, values = (
        dict(zip(stretches, tensor.split(sizes, dim=1), strict=True)) for tensor in (key, value)
    )  # (N, h_kv, D) each
    outputs = []
    for q, heads in zip(queries, ranges, strict=True):
        stretch = (heads.key_value.start, heads.key_value.stop)
        k, v = (with_sink_tokens(tensors[stretch], cuts, shifted=heads.shifted) for tensors in (keys, values))
        outputs.append(attend(q, k, v, heads))  # (N, h, D_v)
    return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]  # (N, H, D_v)
