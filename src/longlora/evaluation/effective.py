"""From counts of right answers to a statement: how sure the shares are, and up to where the model reads."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from longlora.errors import ConfigError

DEFAULT_BAR = 0.9
_Z = 1.959964  # 95 % of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of right answers with Wilson's 95 % interval.

    With p the share of n trials and z = 1.96 the interval is
    `(p + z**2 / 2n ± z * sqrt(p * (1 - p) / n + z**2 / 4n**2)) / (1 + z**2 / n)` (Wilson 1927). It stays within 0 to 1,
    and says something for 10 of 10 as well: 0.72 to 1.
    """

    share: float
    low: float
    high: float
    num_trials: int

    def __str__(self) -> str:
        return f"{self.share:.0%} of {self.num_trials} (95 % interval {self.low:.0%} to {self.high:.0%})"


def wilson(right: float, num_trials: int) -> Share:
    """Compute the share and its interval; `right` need not be whole, for a tie of k choices counts one k-th."""
    p, n = right / num_trials, num_trials
    middle = p + _Z**2 / (2 * n)
    spread = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    # Bounds of 0 and 1 are exact; rounding must not move them past the share.
    low, high = (middle - spread) / scale, (middle + spread) / scale
    return Share(share=p, low=max(0.0, min(p, low)), high=min(1.0, max(p, high)), num_trials=n)


def effective_length(shares: Mapping[int, float], bar: float = DEFAULT_BAR) -> int | None:
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
