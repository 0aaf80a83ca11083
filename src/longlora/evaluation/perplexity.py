"""Perplexity of a causal language model at a context length, on documents that are already tokenised.

A window is a run of tokens that the model reads from scratch; its last tokens are scored, each given the ones before it
in the window. The protocols differ in nothing but the list of windows (`longlora.evaluation.scoring`).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from longlora.errors import ConfigError, DataError
from longlora.evaluation.logits import Model
from longlora.evaluation.results import Perplexity
from longlora.evaluation.scoring import (
    Document,
    Window,
    batches,
    evaluation_mode,
    evenly_spread,
    full_windows,
    nats_of_targets,
    sliding_windows,
    token_arrays,
    windows_at_length,
)
from longlora.support.progress import progress_bar


def perplexity(
    model: Model,
    documents: Iterable[Document],
    *,
    window: int,
    stride: int,
    score: Literal["new", "all"] = "new",
    across_documents: bool = False,
    batch_size: int = 1,
    max_windows: int | None = None,
    progress: bool = True,
) -> Perplexity:
    """Measure the perplexity of documents read through a window of `window` tokens that moves by `stride`.

    `score="new"` scores a token once, with `window - stride` to `window - 1` tokens before it (fewer at a document's
    start). `score="all"`, with `stride=256` and `across_documents=True` (one joined stream), is the original's
    protocol: half a window before a token on average. But its eval.py takes the mean of batch means, however short the
    last batch, and drops the last one or two windows that fit; here tokens weigh the same and all windows count.

    At most `max_windows` are read, spread evenly. Of logits 1,024 rows are in memory at a time.

    Raises:
        ConfigError: an argument is out of its range.
        DataError: a document is empty or not made of this model's token ids, or no document gives a window.
        CheckpointError: the model produces NaN.
    """
    _check_at_least(1, stride=stride, batch_size=batch_size, max_windows=1 if max_windows is None else max_windows)
    tokens = token_arrays(model, documents)
    if across_documents and len(tokens) > 1:
        tokens = [np.concatenate([document.astype(np.int64) for document in tokens])]
    windows = _windows_of_protocol([len(document) for document in tokens], window=window, stride=stride, score=score)
    windows = evenly_spread(windows, max_windows or len(windows))
    return _score(model, tokens, windows, batch_size=batch_size, progress=progress, description="perplexity")


def perplexity_by_length(
    model: Model,
    documents: Iterable[Document],
    *,
    lengths: Sequence[int],
    stride: int,
    longest: int | None = None,
    batch_size_tokens: int = 8192,
    max_targets: int | None = None,
    progress: bool = True,
    description: str = "",
) -> dict[int, Perplexity]:
    """Measure the perplexity of the same targets at several context lengths, the shortest length first.

    At length L a target has L - stride to L - 1 tokens before it. Documents below `max(lengths)` tokens are left out.
    `longest` takes that maximum's place where further lengths are measured by another call, on the same targets.
    A forward pass reads `batch_size_tokens`, at least a window. `max_targets` is kept by taking windows evenly.

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
    tokens = token_arrays(model, documents)
    sizes = [len(document) for document in tokens]
    longest = max(longest or 0, *lengths)
    _check_longest(sizes, "max(lengths)", longest)
    results = {}
    for length in sorted(set(lengths)):
        windows = windows_at_length(sizes, length=length, longest=longest, stride=stride)
        windows = evenly_spread(windows, max_targets // stride if max_targets else len(windows))
        batch_size, label = max(1, batch_size_tokens // length), f"{description} {length} tokens".lstrip()
        results[length] = _score(model, tokens, windows, batch_size=batch_size, progress=progress, description=label)
    return results


def _check_at_least(minimum: int, **values: int) -> None:
    for name, value in values.items():
        if value < minimum:
            raise ConfigError(f"{name} must be at least {minimum}, not {value}.")


def _check_longest(document_lengths: Sequence[int], name: str, needed: int) -> None:
    longest = max(document_lengths)
    if longest < needed:
        raise DataError(
            f"At least one document must have {name} = {needed} tokens, the longest has {longest}: give longer "
            f"documents or set {name} to {longest} or less."
        )


def _windows_of_protocol(document_lengths: Sequence[int], *, window: int, stride: int, score: str) -> list[Window]:
    _check_at_least(2, window=window)
    if score == "all":
        _check_longest(document_lengths, "window", window)
        return full_windows(document_lengths, window=window, stride=stride)
    if score != "new":
        raise ConfigError(f"score must be 'new' or 'all', not {score!r}.")
    if stride > window:
        raise ConfigError(f"stride must be at most window ({window}), not {stride}, or tokens would go unscored.")
    if max(document_lengths) < 2:
        raise DataError("Nothing to score: every document has a single token. Join them with across_documents=True.")
    return sliding_windows(document_lengths, window=window, stride=stride)


def _score(
    model: Model, tokens: list[np.ndarray], windows: list[Window], *, batch_size: int, progress: bool, description: str
) -> Perplexity:
    nats, counts = list[float](), list[int]()
    with evaluation_mode(model), progress_bar(description, total=len(windows), progress=progress) as advance:
        for batch in batches(windows, batch_size):
            nats += nats_of_targets(model, tokens, batch).sum(dim=1).tolist()
            counts += [window.num_targets for window in batch]
            advance(len(batch), f"windows, perplexity {_exp(sum(nats) / sum(counts)):.2f}")
    num_windows, num_tokens, loss = len(windows), sum(counts), math.fsum(nats) / sum(counts)
    squares = sum((value - loss * count) ** 2 for value, count in zip(nats, counts, strict=True))
    standard_error = math.sqrt(squares * num_windows / (num_windows - 1)) / num_tokens if num_windows > 1 else math.nan
    return Perplexity(
        perplexity=_exp(loss), loss=loss, num_tokens=num_tokens, num_windows=num_windows, standard_error=standard_error
    )


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 709 else math.inf  # math.exp raises above


ORIGINAL_STRIDE = 256
ORIGINAL_BATCH_SIZE = 32
_E = 2.71828  # the number that eval.py raises to the loss


def original_windows(num_tokens: int, *, window: int, stride: int = ORIGINAL_STRIDE) -> list[Window]:
    """Cut a stream as `eval.py` does: starts are `range(0, num_tokens - window, stride)` without the last."""
    starts = range(0, num_tokens - window, stride)[:-1]
    return [Window(0, start, start + window, window - 1) for start in starts]


def original_perplexity(
    model: Model,
    documents: Sequence[Document],
    *,
    window: int,
    stride: int = ORIGINAL_STRIDE,
    batch_size: int = ORIGINAL_BATCH_SIZE,
    progress: bool = True,
) -> Perplexity:
    """Measure the perplexity of all documents joined into one stream, by the original's protocol.

    Every window is read from scratch and all of its `window - 1` predictions count, those with hardly a token before
    them too; the loss is the mean over batches of the batch's mean, so that a short last batch weighs as much as a full
    one; the perplexity is `2.71828 ** loss`. What differs from `perplexity(score="all")` is that weight, the windows at
    the end that are dropped, and the fifth digit of e. `standard_error` is NaN: windows overlap almost wholly.

    Raises:
        ConfigError: an argument is out of its range.
        DataError: a document is not made of token ids, or the stream gives no window.
        CheckpointError: the model produces NaN.
    """
    for name, value, least in (("window", window, 2), ("stride", stride, 1), ("batch_size", batch_size, 1)):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, not {value}.")
    tokens = token_arrays(model, documents)
    stream = tokens[0] if len(tokens) == 1 else np.concatenate([document.astype(np.int64) for document in tokens])
    windows = original_windows(len(stream), window=window, stride=stride)
    if not windows:
        raise DataError(
            f"The original's protocol needs more than window + stride = {window + stride} tokens, because it drops the "
            f"last window; all documents together have {len(stream)}: give more text or a shorter window."
        )
    means: list[float] = []
    with evaluation_mode(model), progress_bar(f"{window} tokens", total=len(windows), progress=progress) as advance:
        for first in range(0, len(windows), batch_size):
            batch = windows[first : first + batch_size]
            means.append(nats_of_targets(model, [stream], batch).mean().item())
            advance(len(batch), f"loss {sum(means) / len(means):.3f}")
    loss = math.fsum(means) / len(means)
    return Perplexity(
        perplexity=_E**loss if loss < 709 else math.inf,
        loss=loss,
        num_tokens=len(windows) * (window - 1),
        num_windows=len(windows),
        standard_error=math.nan,
    )
