"""Compare an extended model with its base on the same tokens at the base context: is short context preserved?"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from longlora.errors import ConfigError, DataError
from longlora.evaluation.logits import Model
from longlora.evaluation.scoring import Document, evenly_spread, score_windows, token_arrays, windows_at_length
from longlora.evaluation.shares import Z95
from longlora.evaluation.text_results import ShortContext


class Losses(NamedTuple):
    """A model's losses at the base context, kept until the other model has been evaluated."""

    model: str
    weights: str
    tokens: str  # digest of the tokens scored
    losses: np.ndarray  # (windows,)


def window_losses(
    model: Model,
    documents: Sequence[Document],
    *,
    length: int,
    stride: int,
    max_targets: int | None = None,
    batch_size_tokens: int = 8192,
    progress: bool = True,
    description: str = "",
) -> np.ndarray:
    """Return the mean loss of the last `stride` tokens of each window of `length` tokens, in nats: (windows,).

    Raises:
        DataError: a document has ids outside the vocabulary, or none has `length` tokens.
        CheckpointError: the model produces NaN.
    """
    tokens = token_arrays(model, documents)
    windows = windows_at_length([len(document) for document in tokens], length=length, longest=length, stride=stride)
    if not windows:
        raise DataError(
            f"at least one document must have {length:,} tokens, the base's context; the longest has "
            f"{max(map(len, tokens)):,}: give longer documents, or join them"
        )
    windows = evenly_spread(windows, max(1, max_targets // stride) if max_targets else len(windows))
    batches = score_windows(
        model,
        tokens,
        windows,
        lambda nats: nats.mean(dim=1).numpy(),
        batch_size=max(1, batch_size_tokens // length),
        progress=progress,
        description=f"{description} {length} tokens".lstrip(),
    )
    return np.concatenate(batches)


def compare_losses(
    base: Losses, own: Losses, *, length: int, stride: int, settings: dict[str, Any], provenance: dict[str, Any]
) -> ShortContext:
    """Compare the losses of a model with those of its base, window by window.

    Raises:
        ConfigError: the two tokenize the texts differently.
    """
    if base.tokens != own.tokens:
        raise ConfigError(
            f"{own.model} and {base.model} tokenize the same texts differently, so their perplexity cannot be "
            "compared: give the model's actual base with --base"
        )
    differences = own.losses - base.losses
    mean, count = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return ShortContext(
        model=own.model,
        weights=own.weights,
        base=base.model,
        base_weights=base.weights,
        length=length,
        num_tokens=count * stride,
        num_windows=count,
        base_perplexity=math.exp(base.losses.mean()),
        perplexity=math.exp(own.losses.mean()),
        difference=mean,
        standard_error=error,
        ratio=math.exp(mean),
        low=None if error is None else math.exp(mean - Z95 * error),
        high=None if error is None else math.exp(mean + Z95 * error),
        settings=settings,
        provenance=provenance,
    )
