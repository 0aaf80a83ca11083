"""Every backend that runs on a CPU against the definition, outputs and gradients."""

from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from tests.attention.cases import (
    Case,
    assert_close,
    assert_parity,
    cases,
    edge_cases,
    random_tensors,
    tolerance,
    with_gradients,
)
from torch.nn.functional import scaled_dot_product_attention

from longlora.attention import cut_points, s2_attention, s2_attention_reference
from longlora.attention.sink_tokens import with_sink_tokens


@pytest.mark.parametrize("backend", ["sdpa", "explicit"])
@edge_cases
@given(case=cases())
@settings(max_examples=50)
def test_equals_the_definition_with_gradients(backend, case):
    assert_parity(case, torch.float64, backend=backend)


@example(case=Case(num_tokens=21, group_size=6, num_heads=9, num_kv_heads=3, softcap=1.5, has_sinks=True))
@given(case=cases(softcap=True, sinks=True))
@settings(max_examples=50)
def test_softcap_and_sinks_equal_the_definition(case):
    assert_parity(case, torch.float64)
    assert_parity(case, torch.float64, backend="explicit")


@pytest.mark.parametrize("backend", ["sdpa", "explicit"])
@example(case=Case(num_tokens=13, group_size=1, sink_tokens=3))
@example(case=Case(num_tokens=13, group_size=5, sink_tokens=4, num_heads=5, num_kv_heads=1))  # more than half a group
@example(case=Case(num_tokens=13, group_size=4, sink_tokens=6))  # more than a group
@example(
    case=Case(num_tokens=12, group_size=4, batch_size=2, boundaries=(3, 15), stretches=((2, 12), (0, 9)), sink_tokens=5)
)
@example(case=Case(num_tokens=21, group_size=6, num_heads=9, num_kv_heads=3, sink_tokens=8, layout="transposed"))
@given(case=cases(sink_tokens=True))
@settings(max_examples=250)
def test_sink_tokens_equal_the_definition_with_gradients(backend, case):
    assert_parity(case, torch.float64, backend=backend)


@given(case=cases(softcap=True, sinks=True, sink_tokens=True))
@settings(max_examples=50)
def test_sink_tokens_go_together_with_softcap_and_learned_sinks(case):
    assert_parity(case, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(case=cases(sink_tokens=True))
@settings(max_examples=15)
def test_sink_tokens_equal_the_definition_as_closely_as_the_dtype_allows(dtype, case):
    assert_parity(case, dtype)


@pytest.mark.parametrize("num_sinks", [13, 100])
def test_as_many_sink_tokens_as_the_document_has_is_full_causal_attention(num_sinks, seed):
    tensors = random_tensors(Case(num_tokens=13, group_size=4, num_kv_heads=4, seed=seed))
    actual = with_gradients(s2_attention, tensors, group_size=4, sink_tokens=num_sinks)
    full = with_gradients(partial(scaled_dot_product_attention, is_causal=True), tensors)
    assert_close(actual, full, torch.float64, f"seed {seed}")


def test_without_sink_tokens_nothing_is_copied_and_no_number_changes(seed):
    case = Case(num_tokens=30, group_size=7, boundaries=(11,), seed=seed)
    *inputs, _ = random_tensors(case)
    cuts = cut_points(1, 30, group_size=7, cu_seqlens=case.settings["cu_seqlens"])
    row = inputs[1].transpose(1, 2).flatten(0, 1)  # (N, H_kv, D)
    assert with_sink_tokens(row, cuts, shifted=True) is row


def test_gradients_of_a_sink_are_added_up_in_float32(seed):
    """A thousand groups each send 1 to the sink's value: 1,000 is a bfloat16 number, a sum in bfloat16 stops at 256."""
    num_groups = 1000
    cuts = cut_points(1, num_groups + 1, group_size=1, sink_tokens=1)
    value = torch.zeros(num_groups + 1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    with_sink_tokens(value, cuts, shifted=False).sum().backward()
    assert value.grad is not None
    assert value.grad[0].item() == num_groups + 1 - 1  # 1,001 rounded to 8 bits: 1,000
    assert (value.grad[1:] == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@edge_cases
@settings(max_examples=15)
@given(case=cases())
def test_equals_the_definition_as_closely_as_the_dtype_allows(dtype, case):
    assert_parity(case, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(max_examples=15)
@given(case=cases(softcap=True, sinks=True))
def test_softcap_and_sinks_equal_the_definition_as_closely_as_the_dtype_allows(dtype, case):
    assert_parity(case, dtype)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "explicit"])
def test_values_may_have_a_head_dimension_of_their_own(backend, seed):
    """As in multi-head latent attention."""
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, 1, 4, 11, 6, dtype=torch.float64, generator=generator)
    value, upstream = torch.randn(2, 1, 4, 11, 10, dtype=torch.float64, generator=generator)
    tensors = [query, key, value, upstream]
    actual = with_gradients(s2_attention, tensors, group_size=4, backend=backend)
    expected = with_gradients(s2_attention_reference, tensors, group_size=4)
    assert_close(actual, expected, torch.float64, f"seed {seed}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("position", range(5))
def test_an_error_of_ten_times_the_tolerance_would_be_noticed(dtype, position, seed):
    """One element of the output or of one gradient is enough."""
    case = Case(num_tokens=11, group_size=4, softcap=2.0, has_sinks=True, seed=seed)
    expected = with_gradients(s2_attention_reference, random_tensors(case), **case.settings)
    actual = [tensor.clone() for tensor in expected]
    assert_close(actual, expected, dtype)
    actual[position].view(-1)[3] += 10 * tolerance(expected[position], dtype)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(actual, expected, dtype)


@pytest.mark.parametrize(
    "changed", [{"softcap": 2.1}, {"softcap": None}, {"scale": 0.31}, {"group_size": 5}, {"sink_tokens": 1}]
)
def test_another_setting_would_be_noticed(changed, seed):
    case = Case(num_tokens=11, group_size=4, scale=0.3, softcap=2.0, seed=seed)
    tensors = random_tensors(case)
    expected = with_gradients(s2_attention_reference, tensors, **case.settings)
    actual = with_gradients(s2_attention, tensors, **case.settings | changed)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(actual, expected, torch.float64)


@pytest.mark.parametrize("layout", ["contiguous", "projection"])
def test_blocks_of_the_explicit_path_join_without_a_seam(layout, monkeypatch, seed):
    """With few scores at a time, runs are divided, and segments too, into blocks of odd sizes."""
    from longlora.attention import explicit

    monkeypatch.setattr(explicit, "_MOST_SCORES", 100)
    monkeypatch.setattr(explicit, "_MOST_ROWS", 5)
    case = Case(num_tokens=43, group_size=11, batch_size=2, softcap=2.0, has_sinks=True, layout=layout, seed=seed)
    assert_parity(case, torch.float64, backend="explicit")
    case = Case(num_tokens=43, group_size=11, batch_size=2, sink_tokens=7, layout=layout, seed=seed)
    assert_parity(case, torch.float64, backend="explicit")
    case = Case(num_tokens=43, group_size=2, batch_size=2, softcap=2.0, has_sinks=True, layout=layout, seed=seed)
    assert_parity(case, torch.float64, backend="explicit")


def test_under_autocast_float32_is_computed_in_the_dtype_of_autocast(seed):
    case = Case(num_tokens=11, group_size=4, seed=seed)
    query, key, value, _ = random_tensors(case, torch.float32)
    for backend in ("sdpa", "explicit"):
        with torch.autocast("cpu", torch.bfloat16):
            actual = s2_attention(query, key, value.bfloat16(), group_size=4, backend=backend)
        expected = s2_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), group_size=4, backend=backend)
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance(expected, torch.bfloat16))
        assert actual.dtype == torch.bfloat16


def test_under_autocast_float64_stays_as_it_is(seed):
    tensors = random_tensors(Case(num_tokens=11, group_size=4, seed=seed))[:3]
    with torch.autocast("cpu", torch.bfloat16):
        assert s2_attention(*tensors, group_size=4).dtype == torch.float64


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"softcap": 0.0}, "softcap must be above 0, got 0.0"),
        ({"softcap": -1.0}, "softcap must be above 0, got -1.0"),
        ({"softcap": float("nan")}, "softcap must be above 0, got nan"),
        ({"sinks": torch.zeros(3)}, r"each of the 4 query heads, got \(3,\)"),
    ],
)
def test_refuses_a_softcap_and_sinks_that_mean_nothing(wrong, message):
    from longlora.attention.cuts import cut_points
    from longlora.attention.s2 import attend_in_segments

    attend = getattr(attend_in_segments, "__wrapped__", attend_in_segments)  # past the check of shapes in tests
    with pytest.raises(ValueError, match=message):
        attend(*torch.zeros(3, 1, 4, 8, 4), cut_points(1, 8, group_size=4), **wrong)


def test_refuses_query_heads_that_the_key_value_heads_do_not_divide():
    with pytest.raises(ValueError, match="must be a multiple of the key-value heads, got 4 and 3"):
        s2_attention(torch.zeros(1, 4, 8, 4), *torch.zeros(2, 1, 3, 8, 4), group_size=4)
