"""Results on texts: perplexity by length and on key tokens, loss by position, and a model compared with its base."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field, computed_field

from longlora.evaluation.schema import Number, Result, Schema
from longlora.evaluation.shares import Z95

COLLAPSE = 1.5  # a perplexity this many times higher means that the model breaks down, not just loses quality


class Perplexity(Schema):
    """`exp(loss)`, where the loss is the mean over all scored tokens with equal weight.

    `standard_error` is that of `loss` over windows, weighted by their tokens (ratio estimator): with S_i nats on n_i
    tokens in window i of k, `sqrt(sum((S_i - loss * n_i)**2) * k / (k - 1)) / sum(n_i)`. Windows are treated as
    independent, which makes it somewhat too small for adjacent windows, and far too small for windows that score the
    same tokens (`score="all"`). NaN for a single window.
    """

    perplexity: Number
    loss: Number  # nats per token
    num_tokens: int  # scored; a token in two windows counts twice
    num_windows: int
    standard_error: Number  # nats per token
    window_losses: list[float] = Field(default_factory=list)  # of each window, if all lengths have the same targets


class PerplexityByLength(Result):
    """Perplexity of one model by context length in tokens."""

    FILE = "perplexity.json"

    protocol: str
    data: str  # short description of the texts
    perplexity: dict[int, Perplexity]

    @property
    def falls_to(self) -> int | None:
        """The length up to which each longer context significantly lowers the loss of the same targets.

        Adjacent lengths are compared window by window; the 95 % interval of the mean difference must lie below 0. None
        if the losses by window are unknown.
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
        """The first length whose loss, minus two standard errors, exceeds that at a shorter length by log 1.5.

        More context cannot make the same targets harder: the model breaks down at this length. An infinite or NaN
        perplexity also counts as a collapse.
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


class LossByPosition(Result):
    """Loss by position of one model in windows of `length` tokens."""

    FILE = "positions.json"

    length: int
    num_windows: int
    curve: list[PositionLoss] = Field(min_length=1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def reading_stops_at(self) -> int | None:
        """The position where the loss rises permanently (`reading_stops_at`)."""
        return reading_stops_at(self.curve)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """One sentence: where the loss is lowest, and whether it rises permanently after that."""
        lowest, stop = min(self.curve, key=lambda bucket: bucket.loss), self.reading_stops_at
        place = f"the loss is lowest, {lowest.loss:.3f}, after {lowest.start:,} to {lowest.end - 1:,} tokens"
        if stop is None:
            return f"{place}, and does not rise for good by more than two standard errors"
        return f"{place}, and from {stop:,} tokens on stays above that by more than two standard errors"


def reading_stops_at(curve: Sequence[PositionLoss]) -> int | None:
    """Return the position after which the loss stays more than two standard errors above its minimum.

    The error is that of the difference of two buckets, treated as independent: `sqrt(se_lowest**2 + se**2)`. None if
    the last bucket is not that much worse, or if a single window leaves the error unknown.
    """
    lowest = min(range(len(curve)), key=lambda index: curve[index].loss)
    stop = None
    for bucket in reversed(curve[lowest + 1 :]):
        error = math.hypot(bucket.standard_error, curve[lowest].standard_error)
        if not bucket.loss - curve[lowest].loss > 2 * error:  # also stops at NaN
            break
        stop = bucket.start
    return stop


class ShortContext(Result):
    """A paired comparison of a model with its base on the same targets.

    With d_i the mean loss of window i of k minus the base's on the same window, `difference` is the mean of d_i, and
    `standard_error` is `std(d_i, ddof=1) / sqrt(k)`: the difficulty of the text, common to both, cancels. `low` and
    `high` are `exp(difference ± 1.96 * standard_error)`.
    """

    FILE = "short_context.json"

    base: str
    base_weights: str | None = None
    length: int  # tokens of a window: the base's own context
    num_tokens: int
    num_windows: int
    base_perplexity: float
    perplexity: float
    difference: float  # nats per token; positive if the extended model is worse
    standard_error: float | None
    ratio: float  # `exp(difference)`: perplexity as a multiple of the base's
    low: float | None
    high: float | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """One sentence: whether short context was preserved, within the error."""
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
    """The targets whose loss falls with far context, chosen once by an evaluator, the `model` (LongPPL).

    A target is a key token if its loss given the last `contexts[-1]` tokens is below 2 nats, and more than 2 nats lower
    than given the last `contexts[0]`. Its evidence lies within the shortest of `contexts` that brings half of the gain.
    """

    FILE = "key_tokens.json"

    data: str
    contexts: list[int]  # tokens, the shortest first
    stride: int  # targets at the end of each window; a target's context is short by up to this many tokens
    longest: int  # tokens of the longest window that ends at the targets
    evidence: list[list[int]]  # by window and target: the context that holds the evidence, or 0 if not a key token


class LongPerplexity(Result):
    """Perplexity of one model on the key tokens of an evaluator, given `length` tokens."""

    FILE = "longppl.json"

    evaluator: str
    evaluator_weights: str
    data: str
    length: int
    short: int  # in tokens; the evidence of all key tokens lies beyond it
    num_targets: int  # of which the key tokens are a subset
    all_targets: Perplexity
    key_tokens: Perplexity | None  # None if there are no key tokens
    by_distance: list[PositionLoss]  # of key tokens, by the distance in tokens to their evidence

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """One sentence: how well the model uses far evidence."""
        if self.key_tokens is None:
            return f"none of {self.num_targets:,} tokens needs context beyond {self.short:,} tokens: give other texts"
        return (
            f"perplexity {self.key_tokens.perplexity:.2f} on {self.key_tokens.num_tokens:,} tokens that need context "
            f"beyond {self.short:,} tokens ({self.evaluator}'s choice); {self.all_targets.perplexity:.2f} on all "
            f"{self.num_targets:,}"
        )
