"""Was short context kept? An extended model against its base, on the same tokens, at the base's own context."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from longlora.errors import DataError
from longlora.evaluation.logits import Model
from longlora.evaluation.results import ShortContext
from longlora.evaluation.scoring import (
    Document,
    batches,
    evaluation_mode,
    evenly_spread,
    nats_of_targets,
    token_arrays,
    windows_at_length,
)
from longlora.support.progress import progress_bar

_Z = 1.959964  # 95 % of a normal distribution


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
    """Return the mean loss, nats per token, of the last `stride` tokens of each window of `length`: (windows,).

    Raises:
        DataError: a document is not made of the model's token ids, or none has `length` tokens.
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
    means: list[float] = []
    label = f"{description} {length} tokens".lstrip()
    with evaluation_mode(model), progress_bar(label, total=len(windows), progress=progress) as advance:
        for batch in batches(windows, max(1, batch_size_tokens // length)):
            means += nats_of_targets(model, tokens, batch).mean(dim=1).tolist()
            advance(len(batch), f"loss {np.mean(means):.3f}")
    return np.array(means)


def compare_losses(
    base_losses: np.ndarray,
    losses: np.ndarray,
    *,
    names: tuple[str, str],
    weights: tuple[str, str],
    length: int,
    stride: int,
    settings: dict[str, Any],
    provenance: dict[str, Any],
) -> ShortContext:
    """Compare the losses of a base and of a model made of it, window by window; names and weights in that order too."""
    assert base_losses.shape == losses.shape, "the windows must be the same"
    differences = losses - base_losses
    mean, count = float(differences.mean()), len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return ShortContext(
        model=names[1],
        weights=weights[1],
        base=names[0],
        base_weights=weights[0],
        length=length,
        num_tokens=count * stride,
        num_windows=count,
        base_perplexity=math.exp(base_losses.mean()),
        perplexity=math.exp(losses.mean()),
        difference=mean,
        standard_error=error,
        ratio=math.exp(mean),
        low=None if error is None else math.exp(mean - _Z * error),
        high=None if error is None else math.exp(mean + _Z * error),
        settings=settings,
        provenance=provenance,
    )
