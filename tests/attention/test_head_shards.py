"""Some heads of a layer in each process: together they are the layer, whichever heads a process has."""

import pytest
import torch
from tests.attention.cases import Case, random_tensors

from longlora.attention import HeadShard, attend_in_segments, cut_points, s2_attention_reference

HEADS = [(8, 8, 2), (8, 8, 8), (8, 2, 2), (6, 3, 3), (3, 3, 3), (12, 4, 4), (5, 5, 1)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("backend", ["sdpa", "explicit", "flex"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "count"), HEADS)
def test_parts_of_the_heads_together_are_all(
    num_heads: int, num_kv_heads: int, count: int, backend: str, seed: int
) -> None:
    case = Case(num_tokens=29, group_size=6, num_heads=num_heads, num_kv_heads=num_kv_heads, seed=seed)
    query, key, value, _ = random_tensors(case)
    boundaries = torch.tensor([0, 11, 29])
    parts = []
    for index, shard in enumerate(zip(*(tensor.chunk(count, dim=1) for tensor in (query, key, value)), strict=True)):
        cuts = cut_points(
            1, 29, group_size=6, sink_tokens=2, cu_seqlens=boundaries, heads=HeadShard(index=index, count=count)
        )
        parts.append(attend_in_segments(*shard, cuts, backend=backend))
    expected = s2_attention_reference(query, key, value, group_size=6, sink_tokens=2, cu_seqlens=boundaries)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("num_heads", "count"), [(8, 1), (8, 4), (9, 3), (1, 1), (1, 5)])
def test_the_first_half_of_all_heads_is_unshifted(num_heads: int, count: int) -> None:
    unshifted = [HeadShard(index=index, count=count).num_unshifted(num_heads) for index in range(count)]
    assert sum(unshifted) == (num_heads * count + 1) // 2
    assert sorted(unshifted, reverse=True) == unshifted
