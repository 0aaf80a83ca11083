"""From counts of right answers to a statement: how sure the shares are, and up to where the model reads."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from longlora.errors import ConfigError
from longlora.evaluation.questions import FinishedTrial, RetrievalTest
from longlora.evaluation.results import Retrieval, RetrievalRow, Share

Z95 = 1.959964  # of a normal distribution 95 % lie within so many standard deviations
_VERBS = {"generated": "reads", "chosen": "tells the right value from the others"}


def wilson(right: float, num_trials: int) -> Share:
    """Compute a share and its interval; `right` need not be whole, for a tie of k choices counts one k-th.

    With p the share of n trials and z = 1.96 the interval is
    `(p + z**2 / 2n ± z * sqrt(p * (1 - p) / n + z**2 / 4n**2)) / (1 + z**2 / n)` (Wilson 1927). It stays within 0 to 1,
    and says something for 10 of 10 as well: 0.72 to 1.
    """
    p, n = right / num_trials, num_trials
    middle = p + Z95**2 / (2 * n)
    spread = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    # Bounds of 0 and 1 are exact; rounding must not move them past the share.
    low, high = (middle - spread) / scale, (middle + spread) / scale
    return Share(share=p, low=max(0.0, min(p, low)), high=min(1.0, max(p, high)), num_trials=n)


def effective_length(shares: Mapping[int, float], bar: float) -> int | None:
    """Return the longest tested length with a share of at least `bar` there and at every shorter one, or None.

    Raises:
        ConfigError: the bar is no share above 0.
    """
    check_bar(bar)
    longest = None
    for length in sorted(shares):
        if shares[length] < bar:
            break
        longest = length
    return longest


def check_bar(bar: float) -> None:
    """Refuse a bar that is no share above 0.

    Raises:
        ConfigError: it is not.
    """
    if not 0 < bar <= 1:
        raise ConfigError(f"the bar must be above 0 and at most 1, as in 0.9; got {bar}")


def summarise(
    trials: Sequence[FinishedTrial],
    test: RetrievalTest,
    *,
    bar: float,
    settings: dict[str, Any],
    provenance: dict[str, Any],
) -> Retrieval:
    """Sum up finished trials of one test."""
    rows = [
        _at_length([trial for trial in trials if trial.length == length], test.measures)
        for length in sorted({trial.length for trial in trials})
    ]
    reached = {
        measure: effective_length({row.length: row.shares[measure].share for row in rows}, bar)
        for measure in test.measures
    }
    return Retrieval(
        model=settings["model"],
        weights=settings["weights"],
        test=test.name,
        bar=bar,
        effective_length=reached,
        verdict="\n".join(_verdict(measure, reached[measure], rows, bar) for measure in reached),
        chance=test.measures,
        lengths=rows,
        settings=settings,
        provenance=provenance,
    )


def _at_length(trials: Sequence[FinishedTrial], measures: Mapping[str, float]) -> RetrievalRow:
    def shares(some: Sequence[FinishedTrial]) -> dict[str, Share]:
        return {name: wilson(sum(trial.scores[name] for trial in some), len(some)) for name in measures}

    return RetrievalRow(
        length=trials[0].length,
        mean_tokens=statistics.fmean(trial.num_tokens for trial in trials),
        mean_distance=statistics.fmean(trial.distance for trial in trials),
        shares=shares(trials),
        by_depth={
            "drawn" if depth is None else f"{depth:g}": shares([trial for trial in trials if trial.depth == depth])
            for depth in dict.fromkeys(trial.depth for trial in trials)
        },
        means={
            name: statistics.fmean(trial.scores[name] for trial in trials)
            for name in trials[0].scores
            if name not in measures
        },
    )


def _verdict(measure: str, reached: int | None, rows: Sequence[RetrievalRow], bar: float) -> str:
    verb, at_least, shares = _VERBS[measure], f"{100 * bar:g} %", {row.length: row.shares[measure] for row in rows}
    if reached is None:
        shortest = min(shares)
        return f"{verb} at no tested length at ≥ {at_least}; at {shortest:,}, the shortest: {shares[shortest]}"
    limit = ", the longest tested," if reached == max(shares) else ""
    return f"{verb} to {reached:,} tokens{limit} at ≥ {at_least}; there: {shares[reached]}"
