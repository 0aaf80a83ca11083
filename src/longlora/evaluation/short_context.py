"""Compare an extended model with its base on the same tokens at the base context: is short context preserved?"""

import math
from typing import Any, NamedTuple

import numpy as np

from longlora.errors import ConfigError, DataError
from longlora.evaluation.scoring import target_losses, usual_stride
from longlora.evaluation.shares import Z95
from longlora.evaluation.subject import Loading, base_of, load_subject, named_context, provenance
from longlora.evaluation.text_results import ShortContext
from longlora.evaluation.texts import ModelAndTexts, Texts


class Losses(NamedTuple):
    """A model's losses at the base context, kept until the other model has been evaluated."""

    model: str
    weights: str
    tokens: str  # digest of the tokens scored
    losses: np.ndarray  # (windows,), the mean of each window's last `stride` tokens in nats


def window_losses(material: ModelAndTexts, *, length: int, stride: int, max_targets: int | None = None) -> Losses:
    """Score the last `stride` tokens of each window of `length` tokens.

    Raises:
        DataError: no document has `length` tokens.
        CheckpointError: the model produces NaN.
    """
    if material.longest < length:
        raise DataError(
            f"at least one document must have {length:,} tokens, the base's context; the longest has "
            f"{material.longest:,}: give longer documents, or join them"
        )
    subject = material.subject
    losses = target_losses(
        subject.model,
        material.documents,
        length=length,
        longest=length,
        stride=stride,
        max_targets=max_targets,
        description=subject.name,
    )
    return Losses(subject.name, subject.weights, material.about["tokens"], losses.mean(dim=1).numpy())


def compare_losses(base: Losses, own: Losses, *, length: int, stride: int, settings: dict[str, Any]) -> ShortContext:
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
        provenance=provenance(),
    )


def measure_short_context(
    model_name: str, texts: Texts, loading: Loading, *, base: str | None = None, max_targets: int | None = None
) -> ShortContext:
    """Load a model and its base, one after the other, and compare them at the base context.

    An adapter names its base; for any other model, `base` is required.

    Raises:
        CheckpointError: a model cannot be loaded, or produces NaN.
        ConfigError: the base is unknown, or tokenizes differently.
        DataError: the texts cannot be read, or none is as long as the base context.
    """
    base = base or base_of(model_name)
    if base is None:
        raise ConfigError(f"{model_name} does not name its base: give the base with --base")
    length = named_context(base)
    stride = usual_stride(length)

    def losses_of(name: str) -> Losses:
        material = texts.read_by(load_subject(name, loading))
        return window_losses(material, length=length, stride=stride, max_targets=max_targets)

    settings = {"data": texts.description, "stride": stride, "across_documents": texts.across_documents}
    return compare_losses(losses_of(base), losses_of(model_name), length=length, stride=stride, settings=settings)
