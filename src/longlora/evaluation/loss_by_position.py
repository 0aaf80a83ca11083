"""Loss by position in the window: the curve that shows up to where a model reads."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from longlora.errors import ConfigError, DataError
from longlora.evaluation.logits import Model
from longlora.evaluation.results import PositionLoss, Positions
from longlora.evaluation.scoring import (
    Document,
    Window,
    batches,
    evaluation_mode,
    evenly_spread,
    full_windows,
    nats_of_targets,
    token_arrays,
)
from longlora.support.figures import new_figure, plain, save_figure
from longlora.support.progress import progress_bar


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


def write_positions(result: Positions, output: Path) -> None:
    """Write picture and `positions.json`, which stands for a finished measurement, into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    draw(result, output / "positions.png")
    result.write(output)


def positions_table(result: Positions) -> Table:
    """Tabulate the curve."""
    table = Table(title=f"Loss by position, {result.num_windows} windows of {result.length:,} tokens")
    for column in ("tokens before", "loss (nats)", "± standard error", "perplexity"):
        table.add_column(column, justify="right")
    for bucket in result.curve:
        table.add_row(
            f"{bucket.start:,} to {bucket.end - 1:,}",
            f"{bucket.loss:.3f}",
            f"{bucket.standard_error:.3f}",
            f"{math.exp(min(bucket.loss, 700)):.2f}",
        )
    return table


def draw(result: Positions, path: Path) -> None:
    """Draw loss over position with a band of two standard errors, and the model's own context if it lies within."""
    figure, axes = new_figure(7, 4.2)
    middles = [(bucket.start + bucket.end - 1) / 2 for bucket in result.curve]
    losses = np.array([bucket.loss for bucket in result.curve])
    errors = np.nan_to_num([bucket.standard_error for bucket in result.curve])
    axes.plot(middles, losses, marker="o", markersize=3)
    axes.fill_between(middles, losses - 2 * errors, losses + 2 * errors, alpha=0.25, label="± 2 standard errors")
    if result.context is not None and result.context < result.length:
        axes.axvline(result.context, color="#888888", linestyle="--", linewidth=1, label="the model's context")
    axes.set(
        xlabel="position: tokens before the target",
        ylabel="loss (nats per token)",
        title=f"{result.num_windows} windows of {result.length:,} tokens",
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False)
    plain(axes)
    save_figure(figure, path)
