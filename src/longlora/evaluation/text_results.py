"""Results of reading texts: perplexity by length, on key tokens, loss by position, and a model beside its base."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field, computed_field

from longlora.evaluation.schema import Number, Result, Schema
from longlora.evaluation.shares import Z95

COLLAPSE = 1.5  # a perplexity so many times another's is no loss in quality, but the end of reading


class Perplexity(Schema):
    """`exp(loss)`, the loss a mean over scored tokens of equal weight.

    `standard_error` is that of `loss` over windows, weighted by their tokens (ratio estimator): with S_i nats on n_i
    tokens in window i of k, `sqrt(sum((S_i - loss * n_i)**2) * k / (k - 1)) / sum(n_i)`. Windows are taken as
    independent: it is somewhat too small for neighbours, and far too small where windows score the same tokens
    (`score="all"`). NaN for one window.
    """

    perplexity: Number
    loss: Number  # nats per token
    num_tokens: int  # scored; twice if in two windows
    num_windows: int
    standard_error: Number  # nats per token
    window_losses: list[float] = Field(default_factory=list)  # of each window, where lengths have the same targets


class PerplexityByLength(Result):
    """Perplexity of one model by context length in tokens."""

    FILE = "perplexity.json"

    protocol: str
    data: str  # the texts in a few words
    perplexity: dict[int, Perplexity]

    @property
    def falls_to(self) -> int | None:
        """Name the length up to which each longer context lowers the loss of the same targets, beyond the error.

        The differences of neighbouring lengths are taken window by window; the whole 95 % interval of their mean must
        lie below 0. None where they are not known.
        """
        lengths = sorted(self.perplexity)
        losses = [np.array(self.perplexity[length].window_losses) for length in lengths]
        if len(lengths) < 2 or any(len(own) < 2 or len(own) != len(losses[0]) for own in losses):
            return None
        reached = lengths[0]
        for length, shorter, longer in zip(lengths[1:], losses, losses[1:], strict=False):
            gains = shorter - longer
            if not gains.mean() > Z95 * gains.std(ddof=1) / math.sqrt(len(gains)):
                break
            reached = length
        return reached

    @property
    def collapses_at(self) -> int | None:
        """Name the first length with a loss above that at a shorter one by log 1.5, two standard errors taken off.

        On the same targets more context cannot make them harder: the model does not bear the length. A perplexity that
        is not finite is a collapse too.
        """
        best: Perplexity | None = None
        for length in sorted(self.perplexity):
            own = self.perplexity[length]
            if not math.isfinite(own.perplexity):
                return length
            loss = math.log(own.perplexity)
            if best is not None:
                error = math.hypot(*(e for e in (own.standard_error, best.standard_error) if math.isfinite(e)))
                if loss - math.log(best.perplexity) - 2 * error > math.log(COLLAPSE):
                    return length
            best = own if best is None or own.perplexity < best.perplexity else best
        return None


class PositionLoss(Schema):
    """Mean loss of the targets that have `start` to `end - 1` tokens before them."""

    start: int
    end: int
    loss: Number  # nats per token
    standard_error: Number  # of `loss` over windows; NaN for one window
    num_tokens: int


class Positions(Result):
    """Loss by position of one model in windows of `length` tokens."""

    FILE = "positions.json"

    length: int
    num_windows: int
    curve: list[PositionLoss] = Field(min_length=1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def reading_stops_at(self) -> int | None:
        """Where the loss rises for good (`reading_stops_at`)."""
        return reading_stops_at(self.curve)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """Say in one sentence where the loss is lowest and whether it rises for good after that."""
        lowest, stop = min(self.curve, key=lambda bucket: bucket.loss), self.reading_stops_at
        place = f"the loss is lowest, {lowest.loss:.3f}, after {lowest.start:,} to {lowest.end - 1:,} tokens"
        if stop is None:
            return f"{place}, and does not rise for good by more than two standard errors"
        return f"{place}, and from {stop:,} tokens on stays above that by more than two standard errors"


def reading_stops_at(curve: Sequence[PositionLoss]) -> int | None:
    """Name the position from which on the loss stays above its lowest value by more than two standard errors.

    The error is that of the difference of two buckets, taken as independent: `sqrt(se_lowest**2 + se**2)`. None if the
    last bucket is not that much worse, or if there is a single window and so no error.
    """
    lowest = min(range(len(curve)), key=lambda index: curve[index].loss)
    stop = None
    for bucket in reversed(curve[lowest + 1 :]):
        error = math.hypot(bucket.standard_error, curve[lowest].standard_error)
        if not bucket.loss - curve[lowest].loss > 2 * error:  # a NaN ends it too
            break
        stop = bucket.start
    return stop


class ShortContext(Result):
    """Two models on the same targets.

    With d_i the mean loss of window i of k less the base's on the same window, `difference` is the mean of d_i and its
    `standard_error` is `std(d_i, ddof=1) / sqrt(k)`: what both models find hard cancels. `low` and `high` are
    `exp(difference ± 1.96 * standard_error)`.
    """

    FILE = "short_context.json"

    base: str
    base_weights: str | None = None
    length: int  # tokens of a window: the base's own context
    num_tokens: int
    num_windows: int
    base_perplexity: float
    perplexity: float
    difference: float  # nats per token; above 0 the extended model is worse
    standard_error: float | None
    ratio: float  # `exp(difference)`: perplexity as a multiple of the base's
    low: float | None
    high: float | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """Say whether short context was kept, as far as the error lets one say."""
        change = f"perplexity {100 * (self.ratio - 1):+.1f} % at {self.length:,} tokens"
        if self.low is None or self.high is None:
            return f"{change}; a single window has no error: give more text"
        interval = f"95 % interval {100 * (self.low - 1):+.1f} to {100 * (self.high - 1):+.1f} %"
        if self.low > 1:
            return f"worse than its base: {change} ({interval})"
        if self.high < 1:
            return f"better than its base on these texts: {change} ({interval})"
        return f"no different from its base beyond the error: {change} ({interval})"


class KeyTokens(Result):
    """The targets whose loss falls with far context, chosen once by an evaluator, which is `model` (LongPPL).

    A target is key if its loss given the last `contexts[-1]` tokens is below 2 nats, and more than 2 nats lower than
    that given the last `contexts[0]`. Its evidence lies within the shortest of `contexts` that brings half of the gain.
    """

    FILE = "key_tokens.json"

    data: str
    contexts: list[int]  # tokens, the shortest first
    stride: int  # scored at the end of a window; a target has up to so many tokens less than its context before it
    longest: int  # tokens of the longest window that ends at the targets
    evidence: list[list[int]]  # by window and target: that context, or 0 where the target is no key token

    @property
    def num_key_tokens(self) -> int:
        """How many targets are key."""
        return int(np.count_nonzero(self.evidence))


class LongPerplexity(Result):
    """Perplexity of one model on the key tokens of an evaluator, given `length` tokens."""

    FILE = "longppl.json"

    evaluator: str
    evaluator_weights: str
    data: str
    length: int
    short: int  # tokens beyond which the evidence of all key tokens lies
    num_targets: int  # that the key tokens were chosen among
    all_targets: Perplexity
    key_tokens: Perplexity | None  # None: there is none
    by_distance: list[PositionLoss]  # of key tokens, by tokens to their evidence

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """Say what the model makes of far evidence."""
        if self.key_tokens is None:
            return f"none of {self.num_targets:,} tokens needs what lies beyond {self.short:,} tokens: give other texts"
        return (
            f"perplexity {self.key_tokens.perplexity:.2f} on {self.key_tokens.num_tokens:,} tokens that need what lies "
            f"beyond {self.short:,} tokens ({self.evaluator}'s choice); {self.all_targets.perplexity:.2f} on all "
            f"{self.num_targets:,}"
        )
