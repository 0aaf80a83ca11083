"""Intervals against the equation that defines them, and the longest length by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlora.errors import ConfigError
from longlora.evaluation.shares import effective_length, wilson


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_their_equation(counts: tuple[int, int]) -> None:
    right, num_trials = counts
    share = wilson(right, num_trials)
    assert 0 <= share.low <= share.share <= share.high <= 1
    for bound in (share.low, share.high):
        # A bound is a true share p from which the observed one is 1.96 standard deviations away.
        distance = abs(share.share - bound) - 1.959964 * math.sqrt(bound * (1 - bound) / num_trials)
        assert distance == pytest.approx(0, abs=1e-9)


def test_wilson_literals() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for right, num_trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        share = wilson(right, num_trials)
        assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)


def test_ties_count_in_part() -> None:
    assert wilson(2.5, 10).share == 0.25


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.0}, 4),
        ({4: 0.5, 1: 1.0, 2: 0.9}, 2),
        ({1: 1.0, 2: 0.89, 4: 1.0}, 1),
        ({1: 0.5, 2: 1.0}, None),
        ({8: 0.9}, 8),
    ],
)
def test_every_shorter_length_must_pass_too(shares: dict[int, float], expected: int | None) -> None:
    assert effective_length(shares, 0.9) == expected


@pytest.mark.parametrize("bar", [0, -0.1, 1.1])
def test_a_bar_that_is_no_share(bar: float) -> None:
    with pytest.raises(ConfigError, match=f"the bar must be above 0 and at most 1, as in 0.9; got {bar}"):
        effective_length({1: 1.0}, bar)
