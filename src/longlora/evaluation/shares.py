"""Confidence intervals for shares of right answers, and the effective length that follows from them.

Every claim rests on the lower bound of an interval: 10 right answers of 10 mean 72 % to 100 %. There are three
definitions of the effective length. Each is the longest tested length at which, and at every shorter one:

bar      the lower bound reaches the requested bar (default 0.8)
nolima   the lower bound reaches 85 % of the model's own share at the shortest length (Modarressi et al. 2025, NoLiMa)
ruler    the lower bound reaches 85.6 %, Llama-2-7B's score at 4,096 tokens (Hsieh et al. 2024, RULER)
"""

import math
from collections.abc import Mapping
from itertools import takewhile
from typing import Literal, NamedTuple

from longlora.errors import ConfigError
from longlora.evaluation.schema import Schema

Z95 = 1.959964  # 95 % of a normal distribution lies within this many standard deviations
BAR = 0.8  # 16 right answers of 16 certify it, 26 of 27, or 46 of 50
Definition = Literal["bar", "nolima", "ruler"]
_NOLIMA_PART, _RULER_SCORE = 0.85, 0.856


class Share(Schema):
    """A share of right answers with its 95 % Wilson interval (`wilson`)."""

    share: float
    low: float
    high: float
    num_trials: int

    def __str__(self) -> str:
        return f"{self.share:.0%} of {self.num_trials} (95 % interval {self.low:.0%} to {self.high:.0%})"


def wilson(right: float, num_trials: int) -> Share:
    """Compute a share and its interval; `right` may be fractional, because a k-way tie counts 1/k.

    With p the share of n trials and z = 1.96, the interval is
    `(p + z**2 / 2n ± z * sqrt(p * (1 - p) / n + z**2 / 4n**2)) / (1 + z**2 / n)` (Wilson 1927). It stays within 0 to 1
    and is informative even for 10 of 10: 0.72 to 1.
    """
    p, n = right / num_trials, num_trials
    middle = p + Z95**2 / (2 * n)
    spread = Z95 * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    # Bounds of 0 and 1 are exact; rounding must not put the share outside them.
    low, high = (middle - spread) / scale, (middle + spread) / scale
    return Share(share=p, low=max(0.0, min(p, low)), high=min(1.0, max(p, high)), num_trials=n)


def effective_length(shares: Mapping[int, Share], *, bar: float, definition: Definition = "bar") -> int | None:
    """Return the effective length by a definition, or None.

    In NoLiMa's definition, the shortest length is the reference and counts if any answer there was right.
    """
    shortest = min(shares)
    reference = shares[shortest].share
    needed = {"bar": bar, "nolima": _NOLIMA_PART * reference, "ruler": _RULER_SCORE}[definition]

    def meets(length: int) -> bool:
        if definition == "nolima" and length == shortest:
            return reference > 0
        return shares[length].low >= needed

    return max(takewhile(meets, sorted(shares)), default=None)


class ReadLength(NamedTuple):
    """How far a model reads by the bar, judged from its shares by length.

    `reads`: as far as `reached`. `cannot`: even at the shortest length the whole interval is below the bar; the task is
    too hard and does not show how far the model reads. `too few`: the interval at the shortest length contains the bar.
    """

    kind: Literal["reads", "cannot", "too few"]
    reached: int | None
    failed: int | None  # the first length that does not reach the bar
    is_sure: bool  # whether the whole interval at `failed` is below the bar, rather than too wide to tell


def reading(shares: Mapping[int, Share], *, bar: float) -> ReadLength:
    """Judge how far a model reads from its shares by length."""
    reached = effective_length(shares, bar=bar)
    failed = next((length for length in sorted(shares) if reached is None or length > reached), None)
    is_sure = failed is not None and shares[failed].high < bar
    if reached is not None:
        return ReadLength("reads", reached, failed, is_sure)
    return ReadLength("cannot" if is_sure else "too few", None, failed, is_sure)


def questions_needed(bar: float) -> int:
    """Return how many questions, all answered right, certify a bar: `z**2 * bar / (1 - bar)`, rounded up."""
    return math.ceil(Z95**2 * bar / (1 - bar) - 1e-9)


def check_bar(bar: float) -> None:
    """Check that a bar lies between 0 and 1, both excluded: no number of questions could certify 1.

    Raises:
        ConfigError: it does not.
    """
    if not 0 < bar < 1:
        raise ConfigError(f"the bar must lie between 0 and 1, as in {BAR}; got {bar}")


def verdict(shares: Mapping[int, Share], *, bar: float, verb: str = "reads") -> str:
    """Describe in one sentence how far a model reads by the bar; the longest tested length is always included."""
    found, longest, percent = reading(shares, bar=bar), max(shares), f"{100 * bar:g} %"
    if found.failed is None:
        return f"{verb} to {longest:,} tokens, the longest tested, reliably at ≥ {percent}; there: {shares[longest]}"
    failed = f"at {found.failed:,} tokens{'' if found.reached else ', the shortest tested'}: {shares[found.failed]}"
    if found.kind == "cannot":
        return f"cannot do the task {failed}; that says nothing about how far it {verb}"
    if found.reached is None:
        enough = questions_needed(bar)
        return f"too few questions to say how far it {verb}; {failed}; {percent} takes {enough} of {enough} right"
    beyond = "not" if found.is_sure else "too few questions to say whether"
    return (
        f"{verb} to {found.reached:,} of {longest:,} tokens tested, reliably at ≥ {percent}; there: "
        f"{shares[found.reached]}; {beyond} {failed}"
    )
