"""Perplexity exactly as the original LongLoRA's `eval.py` computes it, for comparison with its published tables."""

import math
from collections.abc import Sequence

import numpy as np

from longlora.errors import ConfigError, DataError
from longlora.evaluation.logits import Model
from longlora.evaluation.perplexity import Perplexity
from longlora.evaluation.scoring import Document, evaluation_mode, nats_of_targets, token_arrays
from longlora.evaluation.windows import Window
from longlora.support.progress import progress_bar

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
