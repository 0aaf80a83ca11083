"""FlexAttention: its mask against the definition's, and, on the CPU, its forward pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attention.cases import Case, random_tensors, tolerance
from torch import Tensor

from longlora.attention import CutPoints, cut_points, flex, s2_attention, s2_attention_reference
from longlora.attention.reference import s2_mask

# torch's words for: without the compiler all scores are in memory.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")

CASES = [
    Case(num_tokens=150, group_size=40, head_dim=4),
    Case(num_tokens=70, group_size=33, batch_size=3, num_heads=9, num_kv_heads=3, head_dim=4, boundaries=(3, 100)),
    Case(num_tokens=150, group_size=40, head_dim=4, has_sinks=True, stretches=((5, 149),)),
    Case(num_tokens=600, group_size=150, head_dim=4, boundaries=(3, 150), sink_tokens=2),
    Case(num_tokens=600, group_size=150, head_dim=4, stretches=((5, 599),), sink_tokens=140, has_sinks=True),
    Case(num_tokens=150, group_size=400, num_heads=1, num_kv_heads=1, head_dim=4, softcap=2.0, has_sinks=True),
]
NAMES = ["plain", "packed", "sinks and padding", "sink tokens", "many sink tokens", "softcap and sinks"]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_forward_equals_the_definition(case, seed):
    *inputs, _ = random_tensors(Case(**vars(case) | {"seed": seed}))
    sinks = inputs.pop() if case.has_sinks else None
    with torch.no_grad():
        actual = s2_attention(*inputs, sinks=sinks, backend="flex", **case.settings)
    expected = s2_attention_reference(*inputs, sinks=sinks, **case.settings)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance(expected, torch.float64), msg=f"seed {seed}")


def blocks_of(cuts: CutPoints, num_heads: int) -> tuple[Tensor, Tensor]:
    """Which blocks of keys (last axis) each block of queries sees in part, and which it sees whole: (H, b, b) each."""
    mask = flex.block_mask(cuts, num_heads=num_heads, device=torch.device("cpu"))
    num_blocks = mask.kv_indices.shape[-1]
    seen = []
    for numbers, indices in (
        (mask.kv_num_blocks[0], mask.kv_indices[0]),
        (mask.full_kv_num_blocks[0], mask.full_kv_indices[0]),
    ):
        table = torch.zeros(num_heads, num_blocks, num_blocks, dtype=torch.bool)
        for head, row in torch.cartesian_prod(torch.arange(num_heads), torch.arange(num_blocks)).tolist():
            table[head, row, indices[head, row, : numbers[head, row]].long()] = True
        assert torch.equal(table.sum(-1), numbers)  # none is named twice
        seen.append(table)
    return seen[0], seen[1]


@pytest.mark.parametrize("whole_documents", [False, True])
@given(
    batch_size=st.integers(1, 2),
    num_tokens=st.integers(1, 24),
    group_size=st.integers(1, 30),
    num_heads=st.integers(1, 3),
    sink_tokens=st.integers(0, 9),
)
@settings(max_examples=30)
def test_blocks_are_those_that_the_definition_lets_through(
    whole_documents, batch_size, num_tokens, group_size, num_heads, sink_tokens
):
    """In blocks of 4 tokens, so that small batches have many."""
    size, total = 4, batch_size * num_tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "BLOCK_SIZE", size)
        cuts = cut_points(
            batch_size, num_tokens, group_size=None if whole_documents else group_size, sink_tokens=sink_tokens
        )
        partial, full = blocks_of(cuts, num_heads)
    rows = torch.arange(0, total + 1, num_tokens)
    # A group as long as the row would still cut the shifted half; twice as long cuts nobody.
    group_size = 2 * total if whole_documents else group_size
    sees = s2_mask(
        torch.empty(1, num_heads, total, 1), group_size=group_size, sink_tokens=sink_tokens, cu_seqlens=rows
    )[0]  # (H, N, N)
    num_blocks = -(-total // size)
    for head in range(num_heads):
        for i in range(num_blocks):
            for j in range(num_blocks):
                block = sees[head, i * size : (i + 1) * size, j * size : (j + 1) * size]
                if not sink_tokens:  # blocks of sinks are looked at token by token
                    assert full[head, i, j] == (j < i and bool(block.all()))
                assert not full[head, i, j] or block.all()
                assert partial[head, i, j] == (bool(block.any()) and not full[head, i, j])


def test_the_mask_is_made_once_for_all_layers():
    cuts = cut_points(1, 40, group_size=10)
    query = torch.randn(40, 2, 4)
    with torch.no_grad():
        flex.attend(query, query, query, cuts)
        made = dict(cuts._made)
        flex.attend(query, query, query, cuts)
    assert any(key[0] == "flex" for key in made if isinstance(key, tuple))
    assert all(cuts._made[key] is value for key, value in made.items())


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_compiled_for_the_cpu_equals_the_definition(softcap, seed, monkeypatch):
    """The C++ that torch makes of it; without sinks, since the CPU's kernel returns no log-sum-exp."""
    # torch 2.13 makes C++ that does not compile of lengths that vary.
    monkeypatch.setattr(flex, "flex_attention", torch.compile(flex.flex_attention, dynamic=False))
    case = Case(num_tokens=300, group_size=70, head_dim=16, softcap=softcap, seed=seed)
    query, key, value = (tensor.float() for tensor in random_tensors(case)[:3])
    with torch.no_grad():
        actual = s2_attention(query, key, value, backend="flex", **case.settings)
    expected = s2_attention_reference(query, key, value, **case.settings)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance(expected, torch.float32), msg=f"seed {seed}")
