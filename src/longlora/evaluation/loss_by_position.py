"""Loss by position in the window: the curve that shows up to where a model reads."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from longlora.errors import ConfigError, DataError
from longlora.evaluation.logits import Model
from longlora.evaluation.scoring import Document, evaluation_mode, nats_of_targets, token_arrays
from longlora.evaluation.windows import Window, batches, evenly_spread, full_windows
from longlora.support.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class PositionLoss:
    """Mean loss of the targets that have `start` to `end - 1` tokens before them."""

    start: int
    end: int
    loss: float  # nats per token
    standard_error: float  # of `loss` over windows; NaN for one window
    num_tokens: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the fields for JSON, which has no NaN: it becomes None."""
        return {name: value if math.isfinite(value) else None for name, value in vars(self).items()}


def loss_by_position(
    model: Model,
    documents: Iterable[Document],
    *,
    length: int,
    num_buckets: int = 32,
    max_windows: int | None = None,
    batch_size_tokens: int = 8192,
    progress: bool = True,
    description: str = "",
) -> list[PositionLoss]:
    """Read windows of `length` tokens that do not overlap, and average the loss in ranges of position of equal size.

    In each window position p is the number of tokens before the target, 1 to `length - 1`. All windows are full, so
    every bucket averages over the same windows, and with m_i the mean of window i of k in a bucket its standard error
    is `std(m_i, ddof=1) / sqrt(k)`. A model that uses what it reads gives a falling curve; where the curve turns up,
    reading has stopped. In memory: the hidden states of a window and 1,024 rows of logits (see `logits_in_pieces`).

    Raises:
        ConfigError: an argument is out of its range.
        DataError: a document is not made of token ids, or none has `length` tokens.
        CheckpointError: the model produces NaN.
    """
    if length < 2:
        raise ConfigError(f"length must be at least 2, not {length}.")
    if not 1 <= num_buckets <= length - 1:
        raise ConfigError(f"num_buckets must be 1 to length - 1 ({length - 1}), not {num_buckets}.")
    if max_windows is not None and max_windows < 1:
        raise ConfigError(f"max_windows must be at least 1, not {max_windows}.")
    tokens = token_arrays(model, documents)
    windows = full_windows([len(document) for document in tokens], window=length, stride=length)
    if not windows:
        longest = max(map(len, tokens))
        raise DataError(f"At least one document must have length = {length} tokens, the longest has {longest}.")
    windows = evenly_spread(windows, max_windows or len(windows))
    edges = np.linspace(1, length, num_buckets + 1).round().astype(int)
    means = _bucket_means(model, tokens, windows, edges, max(1, batch_size_tokens // length), progress, description)
    errors = means.std(axis=0, ddof=1) / math.sqrt(len(windows)) if len(windows) > 1 else np.full(num_buckets, math.nan)
    return [
        PositionLoss(
            start=int(start),
            end=int(end),
            loss=float(loss),
            standard_error=float(error),
            num_tokens=int(end - start) * len(windows),
        )
        for start, end, loss, error in zip(edges[:-1], edges[1:], means.mean(axis=0), errors, strict=True)
    ]


def _bucket_means(
    model: Model,
    tokens: Sequence[np.ndarray],
    windows: Sequence[Window],
    edges: np.ndarray,
    batch_size: int,
    progress: bool,
    description: str,
) -> np.ndarray:
    """Return the mean loss of each window in each bucket, (windows, buckets)."""
    means: list[np.ndarray] = []
    label = f"{description} by position".lstrip()
    with evaluation_mode(model), progress_bar(label, total=len(windows), progress=progress) as advance:
        for batch in batches(windows, batch_size):
            nats = nats_of_targets(model, tokens, batch).numpy()  # (B, length - 1), the first has one token before it
            sums = np.add.reduceat(nats, edges[:-1] - 1, axis=1)  # (B, buckets)
            means.extend(sums / np.diff(edges))
            advance(len(batch), f"loss {np.mean(means):.3f}")
    return np.stack(means)


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
