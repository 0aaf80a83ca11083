"""Perplexity and loss by position of a causal language model on tokenized documents.

A window is a run of tokens that the model reads from scratch; its last tokens are scored, each given those before it in
the window. The protocols differ in the windows (`longlora.evaluation.scoring`) and in the average.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from longlora.errors import ConfigError, DataError
from longlora.evaluation import scoring
from longlora.evaluation.logits import Model
from longlora.evaluation.reader import check_positions
from longlora.evaluation.results import LossByPosition, PerplexityByLength
from longlora.evaluation.text_results import Perplexity, PositionLoss
from longlora.support.choices import PerplexityProtocol

if TYPE_CHECKING:  # texts.py loads much that the public functions here do without
    from longlora.evaluation.texts import ModelAndTexts

ORIGINAL_STRIDE = 256


def perplexity(
    model: Model,
    documents: Iterable[scoring.TokenIds],
    *,
    window: int,
    stride: int,
    score: Literal["new", "all"] = "new",
    across_documents: bool = False,
    batch_size: int = 1,
    max_windows: int | None = None,
    show_progress: bool = True,
) -> Perplexity:
    """Measure the perplexity of documents with a sliding window of `window` tokens that moves by `stride`.

    `score="new"` scores each token once, with `window - stride` to `window - 1` tokens before it (fewer at a document's
    start). `score="all"`, with `stride=256` and `across_documents=True` (one joined stream), is the original's
    protocol: half a window before a token on average. However, its eval.py takes the mean of batch means, even for a
    short last batch, and drops the last one or two windows; here all tokens have equal weight and all windows count.

    At most `max_windows` windows are read, spread evenly. Only 1,024 rows of logits are in memory at a time.

    Raises:
        ConfigError: an argument is out of range.
        DataError: a document is empty or has ids outside the vocabulary, or no document yields a window.
        CheckpointError: the model produces NaN.
    """
    if score not in ("new", "all"):
        raise ConfigError(f"score must be 'new' or 'all', not {score!r}.")
    _check_at_least(2, window=window)
    _check_at_least(1, stride=stride, batch_size=batch_size, max_windows=max_windows)
    if score == "new" and stride > window:
        raise ConfigError(f"stride must be at most window ({window}), not {stride}, or tokens would go unscored.")
    tokens = scoring.token_arrays(model, documents)
    tokens = scoring.joined(tokens) if across_documents else tokens
    sizes = [len(document) for document in tokens]
    if score == "all":
        scoring.check_longest(tokens, "window", window)
        windows = scoring.full_windows(sizes, window=window, stride=stride)
    else:
        windows = scoring.sliding_windows(sizes, window=window, stride=stride)
    if not windows:
        raise DataError("Nothing to score: every document has a single token. Join them with across_documents=True.")
    sums = scoring.score_windows(
        model,
        tokens,
        scoring.evenly_spread(windows, max_windows or len(windows)),
        lambda nats: [(value, nats.shape[1]) for value in nats.sum(dim=1).tolist()],
        batch_size=batch_size,
        description="perplexity",
        show_progress=show_progress,
    )
    return perplexity_of(list(chain.from_iterable(sums)))


def perplexity_by_length(
    model: Model,
    documents: Iterable[scoring.TokenIds],
    *,
    lengths: Sequence[int],
    stride: int,
    longest: int | None = None,
    batch_size_tokens: int = 8192,
    max_targets: int | None = None,
    show_progress: bool = True,
    description: str = "",
) -> dict[int, Perplexity]:
    """Measure the perplexity of the same targets at several context lengths, shortest first.

    At length L, a target has L - stride to L - 1 tokens before it. Documents shorter than `max(lengths)` are left out.
    `longest` replaces this maximum if another call measures further lengths on the same targets. A forward pass reads
    `batch_size_tokens`, at least one window. If `max_targets` is set, the windows are spread evenly.

    Raises:
        ConfigError, DataError, CheckpointError: as `perplexity`; DataError if no document is long enough.
    """
    _check_at_least(1, stride=stride, batch_size_tokens=batch_size_tokens)
    if not lengths:
        raise ConfigError("lengths must name at least one context length.")
    if stride >= min(lengths):
        raise ConfigError(f"stride must be smaller than the shortest length ({min(lengths)}), not {stride}.")
    if max_targets is not None and max_targets < stride:
        raise ConfigError(f"max_targets must be at least stride ({stride}, one window's targets), not {max_targets}.")
    tokens, longest, results = scoring.token_arrays(model, documents), max(longest or 0, *lengths), {}
    scoring.check_longest(tokens, "max(lengths)", longest)
    for length in sorted(set(lengths)):
        losses = scoring.target_losses(
            model,
            tokens,
            length=length,
            longest=longest,
            stride=stride,
            max_targets=max_targets,
            batch_size_tokens=batch_size_tokens,
            description=description,
            show_progress=show_progress,
        )
        results[length] = perplexity_of([(nats, stride) for nats in losses.sum(dim=1).tolist()], keep_windows=True)
    return results


def perplexity_of(windows: Sequence[tuple[float, int]], *, keep_windows: bool = False) -> Perplexity:
    """Compute the perplexity from each window's total nats and number of scored tokens, at least one."""
    nats, counts = zip(*windows, strict=True)
    num_windows, num_tokens, loss = len(windows), sum(counts), math.fsum(nats) / sum(counts)
    squares = sum((value - loss * count) ** 2 for value, count in windows)
    standard_error = math.sqrt(squares * num_windows / (num_windows - 1)) / num_tokens if num_windows > 1 else math.nan
    return Perplexity(
        perplexity=scoring.exp(loss),
        loss=loss,
        num_tokens=num_tokens,
        num_windows=num_windows,
        standard_error=standard_error,
        window_losses=[value / count for value, count in windows] if keep_windows else [],
    )


def original_windows(num_tokens: int, *, window: int, stride: int = ORIGINAL_STRIDE) -> list[scoring.Window]:
    """Cut a stream as the original's `eval.py` does: starts are `range(0, num_tokens - window, stride)[:-1]`."""
    starts = range(0, num_tokens - window, stride)[:-1]
    return [scoring.Window(0, start, start + window, window - 1) for start in starts]


def original_perplexity(
    model: Model,
    documents: Sequence[scoring.TokenIds],
    *,
    window: int,
    stride: int = ORIGINAL_STRIDE,
    batch_size: int = 32,
    show_progress: bool = True,
) -> Perplexity:
    """Measure the perplexity of all documents joined into one stream, by the original's protocol.

    Every window is read from scratch, and all of its `window - 1` predictions count, including those with hardly any
    context. The loss is the mean over batches of each batch's mean, so a short last batch has the weight of a full one.
    The perplexity is `2.71828 ** loss`. Differences from `perplexity(score="all")` are this weighting, the dropped
    windows at the end, and the fifth digit of e. `standard_error` is NaN, because windows overlap almost completely.

    Raises:
        ConfigError: an argument is out of range.
        DataError: a document has ids outside the vocabulary, or the stream yields no window.
        CheckpointError: the model produces NaN.
    """
    _check_at_least(2, window=window)
    _check_at_least(1, stride=stride, batch_size=batch_size)
    tokens = scoring.joined(scoring.token_arrays(model, documents))
    windows = original_windows(len(tokens[0]), window=window, stride=stride)
    if not windows:
        raise DataError(
            f"The original's protocol needs more than window + stride = {window + stride} tokens, because it drops the "
            f"last window; all documents together have {len(tokens[0])}: give more text or a shorter window."
        )
    means = scoring.score_windows(
        model,
        tokens,
        windows,
        lambda nats: nats.mean().item(),
        batch_size=batch_size,
        show_progress=show_progress,
        description=f"{window} tokens",
    )
    loss = math.fsum(means) / len(means)
    return Perplexity(
        perplexity=2.71828**loss if loss < 709 else math.inf,  # the constant in eval.py
        loss=loss,
        num_tokens=len(windows) * (window - 1),
        num_windows=len(windows),
        standard_error=math.nan,
    )


def loss_by_position(
    model: Model,
    documents: Iterable[scoring.TokenIds],
    *,
    length: int,
    num_buckets: int = 32,
    max_windows: int | None = None,
    batch_size_tokens: int = 8192,
    show_progress: bool = True,
    description: str = "",
) -> list[PositionLoss]:
    """Average the loss over position ranges of equal size, in non-overlapping windows of `length` tokens.

    In each window, position p is the number of tokens before the target, 1 to `length - 1`. All windows are full, so
    every bucket averages over the same windows. With m_i the mean of window i of k in a bucket, its standard error is
    `std(m_i, ddof=1) / sqrt(k)`. The curve falls as long as the model uses its context; where it turns up, reading has
    stopped. Memory: the hidden states of one window and 1,024 rows of logits (see `logits_in_pieces`).

    Raises:
        ConfigError: an argument is out of range.
        DataError: a document has ids outside the vocabulary, or none has `length` tokens.
        CheckpointError: the model produces NaN.
    """
    _check_at_least(2, length=length)
    _check_at_least(1, max_windows=max_windows)
    if not 1 <= num_buckets <= length - 1:
        raise ConfigError(f"num_buckets must be 1 to length - 1 ({length - 1}), not {num_buckets}.")
    tokens = scoring.token_arrays(model, documents)
    scoring.check_longest(tokens, "length", length)
    windows = scoring.full_windows([len(document) for document in tokens], window=length, stride=length)
    windows = scoring.evenly_spread(windows, max_windows or len(windows))
    edges = np.linspace(1, length, num_buckets + 1).round().astype(int)
    batches = scoring.score_windows(
        model,
        tokens,
        windows,
        # The first target, at 0, has one token before it.
        lambda nats: np.add.reduceat(nats.numpy(), edges[:-1] - 1, axis=1) / np.diff(edges),  # (B, buckets)
        batch_size=max(1, batch_size_tokens // length),
        show_progress=show_progress,
        description=f"{description} by position".lstrip(),
    )
    means = np.concatenate(batches)  # (windows, buckets)
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


def measure_perplexity(
    material: "ModelAndTexts",
    *,
    lengths: Sequence[int] | None = None,
    stride: int | None = None,
    protocol: PerplexityProtocol = "same-targets",
    max_targets: int | None = None,
) -> PerplexityByLength:
    """Measure a model's perplexity at each length by one of the protocols.

    `same-targets` is `perplexity_by_length`, `new` and `all` are `perplexity` with that `score`, and `original` is
    `original_perplexity`, which always joins documents. `lengths` defaults to an eighth, a quarter, a half and the
    whole of the model's context; `stride` to 256 tokens as in the paper, or half of the shortest length if that is
    less. `original` always scores all tokens.

    Raises:
        ConfigError: lengths and stride do not fit together.
        DataError: no document is as long as the longest length.
        CheckpointError: the model produces NaN.
    """
    subject, texts, documents, model = material.subject, material.texts, material.documents, material.subject.model
    lengths = sorted(set(lengths or scoring.usual_lengths(subject.context)))
    move = stride or (ORIGINAL_STRIDE if protocol == "original" else scoring.usual_stride(min(lengths)))

    def at_length(window: int) -> Perplexity:
        if protocol == "original":
            return original_perplexity(model, documents, window=window, stride=move)
        assert protocol != "same-targets"
        targets = window - 1 if protocol == "all" else move
        most = None if max_targets is None else max(1, max_targets // targets)
        return perplexity(model, documents, window=window, stride=move, score=protocol, max_windows=most)

    if protocol == "same-targets":
        measured = perplexity_by_length(
            model, documents, lengths=lengths, stride=move, max_targets=max_targets, description=subject.name
        )
    else:
        measured = {length: at_length(length) for length in lengths}
    return PerplexityByLength(
        **subject.about(),
        protocol=protocol,
        data=texts.description,
        perplexity=measured,
        settings={"stride": stride, "across_documents": texts.across_documents, "max_targets": max_targets},
    )


def measure_positions(
    material: "ModelAndTexts",
    *,
    length: int | None = None,
    num_buckets: int,
    max_windows: int | None,
    beyond: bool,
    settings: dict[str, Any],
) -> LossByPosition:
    """Measure a model's loss by position in windows of `length` tokens, by default its context.

    Raises:
        ConfigError: the window is longer than the model's positions, without `beyond`, or a number is out of range.
        DataError, CheckpointError: as `loss_by_position`.
    """
    subject = material.subject
    length = length or subject.context
    check_positions(subject.model, length, beyond=beyond)
    curve = loss_by_position(
        subject.model,
        material.documents,
        length=length,
        num_buckets=num_buckets,
        max_windows=max_windows,
        description=subject.name,
    )
    num_windows = curve[0].num_tokens // (curve[0].end - curve[0].start)
    return LossByPosition(**subject.about(), length=length, num_windows=num_windows, curve=curve, settings=settings)


def _check_at_least(minimum: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ConfigError(f"{name} must be at least {minimum}, not {value}.")
