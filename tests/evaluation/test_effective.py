"""Intervals against the equation that defines them, and the longest length by hand."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlora.errors import ConfigError
from longlora.evaluation.shares import (
    Definition,
    Share,
    check_bar,
    effective_length,
    questions_needed,
    reading,
    verdict,
    wilson,
)


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


def shares(*right: int, of: int = 50) -> dict[int, Share]:
    return {1024 * 2**place: wilson(count, of) for place, count in enumerate(right)}


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        ((50, 50, 50), (4096, 4096, 4096)),
        ((46, 46, 45), (2048, 4096, None)),  # lower ends 81 %, 81 % and 79 %; 85 % of the 92 % at first are 78.2 %
        ((50, 45, 50), (1024, 1024, 1024)),  # a longer length behind a failed one does not count
        ((40, 39, 33), (None, 1024, None)),  # 80 % of the answers right, surely no more than 67 %
        ((0, 0, 0), (None, None, None)),
    ],
)
def test_three_definitions_rest_on_the_lower_end(right: tuple[int, ...], expected: tuple[int | None, ...]) -> None:
    found = [effective_length(shares(*right), bar=0.8, definition=name) for name in get_args(Definition)]
    assert tuple(found) == expected


def test_a_share_above_the_bar_is_not_enough() -> None:
    """Would fail if the share itself were compared: 15 of 15, and 45 of 50, are above 80 %."""
    for right, of in ((15, 15), (45, 50)):
        found = reading(shares(right, of=of), bar=0.8)
        assert (found.kind, found.reached) == ("too few", None)
    assert reading(shares(16, of=16), bar=0.8).reached == 1024


def test_what_is_said_of_shares() -> None:
    assert reading(shares(50, 50), bar=0.8) == ("reads", 2048, None, False)
    assert reading(shares(50, 45), bar=0.8) == ("reads", 1024, 2048, False)
    assert reading(shares(50, 20), bar=0.8) == ("reads", 1024, 2048, True)
    assert reading(shares(20, 50), bar=0.8) == ("cannot", None, 1024, True)
    said = {right: verdict(shares(*right), bar=0.8) for right in ((50, 50), (50, 45), (50, 20), (20, 50), (45, 50))}
    assert said[50, 50].startswith("reads to 2,048 tokens, the longest tested, reliably at ≥ 80 %; there: 100% of 50")
    assert "1,024 of 2,048 tokens tested" in said[50, 45] and "too few questions to say whether at" in said[50, 45]
    assert "; not at 2,048 tokens: 40% of 50 (95 % interval 28% to 54%)" in said[50, 20]
    assert said[20, 50].startswith("cannot do the task at 1,024 tokens, the shortest tested: 40% of 50")
    assert said[45, 50].startswith("too few questions to say how far it reads") and "16 of 16 right" in said[45, 50]


@pytest.mark.parametrize("bar", [0.5, 0.75, 0.8, 0.9])
def test_so_many_questions_certify_a_bar_and_one_less_does_not(bar: float) -> None:
    needed = questions_needed(bar)
    assert wilson(needed, needed).low >= bar > wilson(needed - 1, needed - 1).low


@pytest.mark.parametrize("bar", [0, -0.1, 1, 1.1])
def test_a_bar_that_is_no_share(bar: float) -> None:
    with pytest.raises(ConfigError, match=f"the bar must lie between 0 and 1, as in 0.8; got {bar}"):
        check_bar(bar)
