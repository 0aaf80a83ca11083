"""The promises of the design: causal, documents, padding and rows independent, and what all that refuses."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from tests.attention.cases import Case, assert_close, cases, random_tensors, with_gradients
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.nn.functional import scaled_dot_product_attention

from longlora.attention import s2_attention


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
@given(cases(sink_tokens=True))
@settings(max_examples=20)
def test_no_output_depends_on_a_later_token(backend, case):
    """The Jacobian is exactly zero above the diagonal, for query, key and value."""
    case = replace(case, num_tokens=min(case.num_tokens, 12), batch_size=1, boundaries=None, stretches=None)
    attention = partial(s2_attention, sink_tokens=case.sink_tokens, backend=backend)
    for derivative in token_jacobians(attention, case):
        assert not derivative.triu(1).any(), case


def test_the_rolled_form_of_the_paper_would_be_caught_depending_on_later_tokens(seed):
    case = Case(num_tokens=12, group_size=4, num_kv_heads=4, seed=seed)
    by_query, by_key, by_value = token_jacobians(rolled_attention, case)
    assert not by_query.triu(1).any()
    assert by_key.triu(1).any() and by_value.triu(1).any()


def test_equals_the_rolled_form_of_the_paper_where_that_does_not_wrap(seed):
    case = Case(num_tokens=12, group_size=4, num_kv_heads=4, batch_size=2, seed=seed)
    query, key, value, _ = random_tensors(case)
    expected = rolled_attention(query, key, value, group_size=4)
    actual = s2_attention(query, key, value, group_size=4)
    torch.testing.assert_close(actual[:, :2], expected[:, :2], msg=f"seed {seed}")
    torch.testing.assert_close(actual[:, 2:, 2:], expected[:, 2:, 2:], msg=f"seed {seed}")


def token_jacobians(attention: Callable, case: Case) -> list[Tensor]:
    """How much the output at one token (first axis) moves with query, key or value at another (second axis)."""
    *inputs, weights = random_tensors(case)

    def number_by_token(*inputs: Tensor) -> Tensor:
        return (attention(*inputs, group_size=case.group_size) * weights).sum(dim=(0, 1, 3))  # (T,)

    derivatives = jacobian(number_by_token, tuple(inputs))  # (T, B, H, T, D) each
    return [derivative.abs().sum(dim=(1, 2, 4)) for derivative in derivatives]  # (T, T) each


def rolled_attention(query: Tensor, key: Tensor, value: Tensor, *, group_size: int) -> Tensor:
    """Algorithm 1 of the paper: roll half of the heads by half a group, attend in groups, roll back."""
    num_heads, num_tokens = query.shape[1:3]

    def roll(tensor: Tensor, by: int) -> Tensor:
        return torch.cat([tensor[:, : num_heads // 2], tensor[:, num_heads // 2 :].roll(by, dims=2)], dim=1)

    grouped = [
        roll(tensor, -(group_size // 2)).unflatten(2, (num_tokens // group_size, group_size))  # (B, H, T/g, g, D)
        for tensor in (query, key, value)
    ]
    return roll(scaled_dot_product_attention(*grouped, is_causal=True).flatten(2, 3), group_size // 2)


@pytest.mark.parametrize("sink_tokens", [0, 1, 3])
@pytest.mark.parametrize("group_size", [1, 4, 5, 100])
def test_packed_documents_equal_documents_alone(group_size, sink_tokens, seed):
    case = Case(num_tokens=20, group_size=group_size, boundaries=(7, 8), sink_tokens=sink_tokens, seed=seed)
    settings = {"group_size": group_size, "sink_tokens": sink_tokens}
    tensors = random_tensors(case)
    packed = with_gradients(s2_attention, tensors, **case.settings)
    alone = [
        with_gradients(s2_attention, [tensor[:, :, first:last] for tensor in tensors], **settings)
        for first, last in ((0, 7), (7, 8), (8, 20))
    ]
    joined = [torch.cat(parts, dim=2) for parts in zip(*alone, strict=True)]
    assert_close(packed, joined, torch.float64, f"seed {seed}")


@pytest.mark.parametrize("sink_tokens", [0, 2])
@pytest.mark.parametrize("stretch", [(3, 13), (0, 10), (2, 12)], ids=["left", "right", "both sides"])
def test_padding_changes_nothing_for_real_tokens(stretch, sink_tokens, seed):
    case = Case(num_tokens=13, group_size=4, stretches=(stretch,), sink_tokens=sink_tokens, seed=seed)
    real = slice(*stretch)
    tensors = random_tensors(case)
    tensors[-1] = tensors[-1] * case.settings["padding_mask"][:, None, :, None]  # no loss looks at padding
    padded = with_gradients(s2_attention, tensors, **case.settings)
    settings = {"group_size": 4, "sink_tokens": sink_tokens}
    alone = with_gradients(s2_attention, [tensor[:, :, real] for tensor in tensors], **settings)
    assert_close([tensor[:, :, real] for tensor in padded], alone, torch.float64, f"seed {seed}")

    changed = [tensor.masked_fill(~case.settings["padding_mask"][:, None, :, None], 1e3) for tensor in tensors[:3]]
    again = with_gradients(s2_attention, [*changed, tensors[-1]], **case.settings)
    for before, after in zip(padded, again, strict=True):
        assert torch.equal(before[:, :, real], after[:, :, real]), f"seed {seed}"


def test_rows_of_a_batch_are_independent(seed):
    case = Case(num_tokens=11, group_size=4, batch_size=3, seed=seed)
    tensors = random_tensors(case)
    together = with_gradients(s2_attention, tensors, group_size=4)
    alone = [with_gradients(s2_attention, [tensor[[row]] for tensor in tensors], group_size=4) for row in range(3)]
    joined = [torch.cat(rows) for rows in zip(*alone, strict=True)]
    assert_close(together, joined, torch.float64, f"seed {seed}")


@pytest.mark.parametrize("group_size", [9, 10, 1000])
def test_one_group_is_full_causal_attention_in_the_unshifted_half(group_size, seed):
    case = Case(num_tokens=9, group_size=group_size, num_kv_heads=4, seed=seed)
    *inputs, _ = random_tensors(case)
    actual = s2_attention(*inputs, group_size=group_size)
    full = scaled_dot_product_attention(*inputs, is_causal=True)
    torch.testing.assert_close(actual[:, :2], full[:, :2], msg=f"seed {seed}")
    shift = group_size // 2
    torch.testing.assert_close(actual[:, 2:, :shift], full[:, 2:, :shift], msg=f"seed {seed}")


@pytest.mark.parametrize(
    "wrong",
    [
        {"group_size": 0},
        {"group_size": 4, "sink_tokens": -1},
        {"group_size": 4, "cu_seqlens": torch.tensor([0, 7])},
        {"group_size": 4, "padding_mask": torch.tensor([[True, False, True, True, True, True, True, True]])},
    ],
    ids=["group", "sink tokens", "documents", "padding"],
)
def test_refuses_what_cut_points_refuses(wrong):
    with pytest.raises(ValueError):
        s2_attention(*torch.zeros(3, 1, 2, 8, 4), **wrong)
