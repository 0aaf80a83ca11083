"""The definition of S²-Attn against masks drawn by hand and a loop over heads, queries and keys."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longlora.attention import s2_attention_reference
from longlora.attention.reference import s2_mask

TOLERANCE = 1e-12  # float64, values about 1


def drawn(mask: Tensor) -> str:
    """Draw a (T, T) mask: a line for every query, a # for every key that it sees."""
    return "\n".join("".join("#" if sees else "." for sees in row) for row in mask.tolist())


def mask_of(num_heads: int, num_tokens: int, **settings) -> Tensor:
    return s2_mask(torch.empty(1, num_heads, num_tokens, 1), **settings)[0]  # (H, T, T)


UNSHIFTED = """\
#.......
##......
###.....
####....
....#...
....##..
....###.
....####"""

SHIFTED = """\
#.......
##......
..#.....
..##....
..###...
..####..
......#.
......##"""


def test_first_half_of_the_heads_is_unshifted_and_the_second_shifted():
    mask = mask_of(4, 8, group_size=4)
    assert [drawn(head) for head in mask] == [UNSHIFTED, UNSHIFTED, SHIFTED, SHIFTED]


def test_the_middle_one_of_an_odd_number_of_heads_is_unshifted():
    assert [drawn(head) for head in mask_of(3, 8, group_size=4)] == [UNSHIFTED, UNSHIFTED, SHIFTED]


def test_a_single_head_is_unshifted():
    assert [drawn(head) for head in mask_of(1, 8, group_size=4)] == [UNSHIFTED]


def test_an_odd_group_is_shifted_by_half_of_it_rounded_down():
    assert drawn(mask_of(2, 8, group_size=5)[1]) == (
        "#.......\n##......\n..#.....\n..##....\n..###...\n..####..\n..#####.\n.......#"
    )


def test_groups_count_from_the_first_token_of_each_document():
    unshifted, shifted = mask_of(2, 8, group_size=4, cu_seqlens=torch.tensor([0, 3, 8]))
    assert drawn(unshifted) == "#.......\n##......\n###.....\n...#....\n...##...\n...###..\n...####.\n.......#"
    assert drawn(shifted) == "#.......\n##......\n..#.....\n...#....\n...##...\n.....#..\n.....##.\n.....###"


def test_groups_count_from_the_first_token_that_is_not_padding():
    padding_mask = torch.tensor([[False, False, True, True, True, True, True, False]])
    unshifted, shifted = mask_of(2, 8, group_size=4, padding_mask=padding_mask)
    assert drawn(unshifted) == "#.......\n##......\n..#.....\n..##....\n..###...\n..####..\n......#.\n.......#"
    assert drawn(shifted) == "#.......\n##......\n..#.....\n..##....\n....#...\n....##..\n....###.\n.......#"


def test_every_token_also_sees_the_sink_tokens_of_its_document_that_are_not_after_it():
    unshifted, shifted = mask_of(2, 8, group_size=2, sink_tokens=3, cu_seqlens=torch.tensor([0, 2, 8]))
    assert drawn(unshifted) == "#.......\n##......\n..#.....\n..##....\n..###...\n..####..\n..###.#.\n..###.##"
    assert drawn(shifted) == "#.......\n##......\n..#.....\n..##....\n..###...\n..####..\n..#####.\n..###..#"


def test_empty_documents_change_nothing():
    boundaries = torch.tensor([0, 0, 3, 3, 8, 8])
    expected = mask_of(2, 8, group_size=4, cu_seqlens=torch.tensor([0, 3, 8]))
    assert torch.equal(mask_of(2, 8, group_size=4, cu_seqlens=boundaries), expected)


def naive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    group_size: int,
    scale: float,
    document_lengths: list[list[int]],
    sink_tokens: int = 0,
    softcap: float | None = None,
    sinks: list[float] | None = None,
) -> list:
    """Write the docstring's sentence as a loop over rows, heads, queries and keys, in Python's floats."""
    batch_size, num_heads, num_tokens, head_dim = query.shape
    q, k, v = query.tolist(), key.tolist(), value.tolist()
    output = torch.empty_like(query).tolist()
    for b in range(batch_size):
        documents = [(d, t) for d, length in enumerate(document_lengths[b]) for t in range(length)]
        for h in range(num_heads):
            shift = group_size // 2 if h >= math.ceil(num_heads / 2) else 0
            groups = [(d, math.floor((t - shift) / group_size)) for d, t in documents]
            kv = h // (num_heads // key.shape[1])
            for t in range(num_tokens):
                sinks_of_t = [
                    s for s in range(t + 1) if documents[s][0] == documents[t][0] and documents[s][1] < sink_tokens
                ]
                seen = sorted({*sinks_of_t, *(s for s in range(t + 1) if groups[s] == groups[t])})
                scores = [scale * math.fsum(map(float.__mul__, q[b][h][t], k[b][kv][s])) for s in seen]
                if softcap is not None:
                    scores = [softcap * math.tanh(score / softcap) for score in scores]
                weights = [math.exp(score) for score in scores]
                total = math.fsum(weights) + (math.exp(sinks[h]) if sinks is not None else 0)
                output[b][h][t] = [
                    math.fsum(w * v[b][kv][s][i] for w, s in zip(weights, seen, strict=True)) / total
                    for i in range(head_dim)
                ]
    return output


@pytest.mark.parametrize("sink_tokens", [0, 1, 3])
@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (3, 3), (4, 2), (4, 1), (6, 3)])
def test_equals_a_loop_over_rows_heads_queries_and_keys(group_size, num_heads, num_kv_heads, sink_tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, num_heads, 7, 3, dtype=torch.float64, generator=generator)
    key, value = torch.randn(2, 2, num_kv_heads, 7, 3, dtype=torch.float64, generator=generator)
    same = {"group_size": group_size, "sink_tokens": sink_tokens, "scale": 0.3}
    expected = naive_attention(query, key, value, document_lengths=[[7], [3, 1, 3]], **same)
    actual = s2_attention_reference(query, key, value, cu_seqlens=torch.tensor([0, 7, 10, 11, 14]), **same)
    torch.testing.assert_close(actual, query.new_tensor(expected), rtol=0, atol=TOLERANCE, msg=f"seed {seed}")


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_softcap_and_sinks_equal_the_same_in_a_loop(softcap, has_sinks, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 6, 7, 3, dtype=torch.float64, generator=generator)
    key, value = torch.randn(2, 2, 3, 7, 3, dtype=torch.float64, generator=generator)
    sinks = torch.randn(6, dtype=torch.float64, generator=generator) if has_sinks else None
    expected = naive_attention(
        query,
        key,
        value,
        group_size=3,
        scale=0.9,
        document_lengths=[[7], [7]],
        softcap=softcap,
        sinks=sinks.tolist() if has_sinks else None,
    )
    actual = s2_attention_reference(query, key, value, group_size=3, scale=0.9, softcap=softcap, sinks=sinks)
    torch.testing.assert_close(actual, query.new_tensor(expected), rtol=0, atol=TOLERANCE, msg=f"seed {seed}")


@pytest.mark.parametrize("group_size", [9, 10, 1000])
def test_one_group_is_full_causal_attention_in_the_unshifted_half(group_size, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 2, 4, 9, 8, dtype=torch.float64, generator=generator)
    actual = s2_attention_reference(query, key, value, group_size=group_size)
    full = scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(actual[:, :2], full[:, :2], rtol=0, atol=TOLERANCE, msg=f"seed {seed}")
