"""A window limits how far back a token sees within its segment, in every backend that knows one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attention.cases import Case, assert_close, cases, random_tensors, with_gradients

from longlora.attention import attend_in_segments, cut_points
from longlora.attention.reference import s2_mask


def by_definition(query, key, value, *, case: Case, window: int, sinks=None):
    """Attend by an explicit mask: that of S²-Attn, and no further back than the window."""
    time = torch.arange(case.num_tokens)
    settings = {name: case.settings[name] for name in ("group_size", "cu_seqlens", "padding_mask")}
    mask = s2_mask(query, **settings) & (time[:, None] - time < window)  # (B, H, T, T)
    repeats = case.num_heads // case.num_kv_heads
    key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(-1, -2) * (case.head_dim**-0.5 if case.scale is None else case.scale)
    if case.softcap is not None:
        scores = case.softcap * (scores / case.softcap).tanh()
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:-1], 1)], dim=-1)
    return scores.softmax(dim=-1)[..., : case.num_tokens] @ value


def by_backend(query, key, value, *, case: Case, window: int, sinks=None, backend: str = "auto"):
    wanted = {name: case.settings[name] for name in ("group_size", "cu_seqlens", "padding_mask")}
    cuts = cut_points(case.batch_size, case.num_tokens, **wanted)
    extras = {"scale": case.scale, "softcap": case.softcap, "sinks": sinks}
    return attend_in_segments(query, key, value, cuts, **extras, window=window, backend=backend)


@settings(max_examples=60)
@given(cases(softcap=True, sinks=True), st.integers(1, 40))
def test_equals_an_explicit_mask_with_gradients(case, window):
    tensors = random_tensors(case)
    actual = with_gradients(by_backend, tensors, case=case, window=window)
    expected = with_gradients(by_definition, tensors, case=case, window=window)
    assert_close(actual, expected, torch.float64, (case, window))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@settings(max_examples=20)
@given(cases(softcap=True, sinks=True), st.integers(1, 40))
@torch.no_grad()
def test_flex_attention_equals_an_explicit_mask(case, window):
    *inputs, _ = random_tensors(case)
    sinks = inputs.pop() if case.has_sinks else None
    actual = by_backend(*inputs, case=case, window=window, sinks=sinks, backend="flex")
    assert_close([actual], [by_definition(*inputs, case=case, window=window, sinks=sinks)], torch.float64, case)


def test_a_window_of_one_token_more_would_be_noticed(seed):
    case = Case(num_tokens=20, group_size=16, seed=seed)
    tensors = random_tensors(case)
    expected = with_gradients(by_definition, tensors, case=case, window=5)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(with_gradients(by_backend, tensors, case=case, window=6), expected, torch.float64)


def test_long_rows_are_scored_in_blocks(seed):
    """More queries than a block of `explicit` holds."""
    case = Case(num_tokens=1100, group_size=2000, num_heads=2, num_kv_heads=1, seed=seed)
    tensors = random_tensors(case)
    actual = with_gradients(by_backend, tensors, case=case, window=300)
    assert_close(actual, with_gradients(by_definition, tensors, case=case, window=300), torch.float64, seed)


@pytest.mark.parametrize("window", [0, -3])
def test_refuses_a_window_without_tokens(window):
    case = Case(num_tokens=4, group_size=2)
    with pytest.raises(ValueError, match=f"window must be at least 1 token, got {window}"):
        by_backend(*random_tensors(case)[:3], case=case, window=window)


def test_refuses_a_window_together_with_sink_tokens():
    cuts = cut_points(1, 8, group_size=4, sink_tokens=1)
    with pytest.raises(ValueError, match="a window of 3 tokens and 1 sink tokens cannot be combined"):
        attend_in_segments(*torch.zeros(3, 1, 4, 8, 4), cuts, window=3)
