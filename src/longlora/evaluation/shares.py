"""From counts of right answers to a statement: how sure a share is, up to where a model reads, and why not further.

Whatever is claimed rests on the lower end of an interval: 10 of 10 right is 72 % to 100 %. Three effective lengths go
by their names, and all of them are the longest tested length that meets a need there and at every shorter one:

bar      the lower end reaches the bar that was asked for (0.8 unless told)
nolima   the lower end reaches 85 % of the model's own share at the shortest length (Modarressi et al. 2025, NoLiMa)
ruler    the lower end reaches 85.6 %, Llama-2-7B's score at 4,096 tokens (Hsieh et al. 2024, RULER)
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from longlora.errors import ConfigError

Z95 = 1.959964  # of a normal distribution 95 % lie within so many standard deviations
BAR = 0.8  # 16 right answers of 16 certify it, 26 of 27, or 46 of 50
Definition = Literal["bar", "nolima", "ruler"]
_NOLIMA_PART, _RULER_SCORE = 0.85, 0.856


class Share(BaseModel):
    """A share of right answers with Wilson's 95 % interval (`wilson`)."""

    model_config = ConfigDict(frozen=True)

    share: float
    low: float
    high: float
    num_trials: int

    def __str__(self) -> str:
        return f"{self.share:.0%} of {self.num_trials} (95 % interval {self.low:.0%} to {self.high:.0%})"


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


def needed_share(shares: Mapping[int, Share], *, bar: float, definition: Definition = "bar") -> float:
    """Return what the lower end of an interval must reach by a definition, for a model with these shares by length."""
    own = shares[min(shares)].share
    return {"bar": bar, "nolima": _NOLIMA_PART * own, "ruler": _RULER_SCORE}[definition]


def effective_length(shares: Mapping[int, Share], *, bar: float, definition: Definition = "bar") -> int | None:
    """Return the longest tested length by a definition, or None.

    By NoLiMa's the shortest length is the measure of the others and counts by itself, if any answer there was right.

    Raises:
        ConfigError: the bar is no share above 0.
    """
    check_bar(bar)
    needed, longest = needed_share(shares, bar=bar, definition=definition), None
    for length in sorted(shares):
        itself = definition == "nolima" and longest is None and shares[length].share > 0
        if not itself and (shares[length].low < needed or needed == 0):
            break
        longest = length
    return longest


class Reading(NamedTuple):
    """What a model's shares by length say of how far it reads, by the bar.

    `reads`: to `reached`. `cannot`: even at the shortest length the whole interval lies below the bar, so that the
    task is too hard, and nothing is known of how far it reads. `too few`: there the interval holds the bar.
    """

    kind: Literal["reads", "cannot", "too few"]
    reached: int | None
    failed: int | None  # the first length that does not reach the bar
    is_sure: bool  # whether at `failed` the whole interval lies below the bar, and not too few were asked


def reading(shares: Mapping[int, Share], *, bar: float) -> Reading:
    """Judge shares by length.

    Raises:
        ConfigError: the bar is no share above 0.
    """
    reached = effective_length(shares, bar=bar)
    failed = next((length for length in sorted(shares) if reached is None or length > reached), None)
    is_sure = failed is not None and shares[failed].high < bar
    if reached is not None:
        return Reading("reads", reached, failed, is_sure)
    return Reading("cannot" if is_sure else "too few", None, failed, is_sure)


def questions_needed(bar: float) -> int:
    """Return how many questions certify a bar if all are answered right: `z**2 * bar / (1 - bar)`, rounded up."""
    return math.ceil(Z95**2 * bar / (1 - bar) - 1e-9)


def check_bar(bar: float) -> None:
    """Refuse a bar that is no share above 0, or that no number of questions could certify.

    Raises:
        ConfigError: it is.
    """
    if not 0 < bar < 1:
        raise ConfigError(f"the bar must lie between 0 and 1, as in {BAR}; got {bar}")


def verdict(shares: Mapping[int, Share], *, bar: float, verb: str = "reads") -> str:
    """Say in one sentence what shares by length mean, by the bar; the longest length that was tested is always named.

    Raises:
        ConfigError: the bar is no share above 0.
    """
    found, longest, percent = reading(shares, bar=bar), max(shares), f"{100 * bar:g} %"
    if found.failed is None:
        return f"{verb} to {longest:,} tokens, the longest tested, surely at ≥ {percent}; there: {shares[longest]}"
    failed = f"at {found.failed:,} tokens{'' if found.reached else ', the shortest tested'}: {shares[found.failed]}"
    if found.kind == "cannot":
        return f"cannot do the task {failed}; that says nothing of how far it {verb}"
    if found.reached is None:
        enough = questions_needed(bar)
        return f"too few questions to say how far it {verb}; {failed}; {percent} takes {enough} of {enough} right"
    beyond = "not" if found.is_sure else "too few questions to say whether"
    return (
        f"{verb} to {found.reached:,} of {longest:,} tokens tested, surely at ≥ {percent}; there: "
        f"{shares[found.reached]}; {beyond} {failed}"
    )
