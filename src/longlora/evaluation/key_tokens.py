"""LongPPL: perplexity on the tokens that need far context (Fang et al. 2025, arXiv 2410.23771).

Most tokens can be predicted from the last few hundred before them, so an average over all tokens hides how a model uses
far context. Here an evaluator chooses, once, the tokens that it predicts with far context but not without it; every
model is measured on those. As for perplexity by length, the targets are the same at each context, `stride` per window.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longlora.evaluation.logits import Model
from longlora.evaluation.perplexity import perplexity_of
from longlora.evaluation.results import KeyTokens, LongPerplexity, finished
from longlora.evaluation.scoring import (
    Document,
    check_longest,
    evenly_spread,
    score_windows,
    token_arrays,
    usual_stride,
    windows_at_length,
)
from longlora.evaluation.subject import Subject
from longlora.evaluation.text_results import Perplexity, PositionLoss

_LEAST_GAIN, _MOST_LOSS = 2.0, 2.0  # nats: the paper's alpha, and minus its beta
_PARTS = 8  # ratio of the long context to the short one; in the paper 32,768 to 4,096 tokens


def ladder(long: int, short: int | None = None) -> list[int]:
    """Return the contexts for an evaluator that reads `long` tokens: from `short` or an eighth, doubling each time."""
    contexts = [long]
    while contexts[0] // 2 >= (short or max(2, long // _PARTS)):
        contexts.insert(0, contexts[0] // 2)
    return [short, *contexts] if short and short < contexts[0] else contexts


def target_losses(
    model: Model,
    documents: Sequence[Document],
    *,
    length: int,
    longest: int,
    stride: int,
    max_targets: int,
    batch_size_tokens: int = 8192,
    progress: bool = True,
    description: str = "",
) -> np.ndarray:
    """Return the loss of each target in nats given `length - stride` to `length - 1` tokens: (windows, stride).

    Raises:
        DataError: a document has ids outside the vocabulary, or none has `longest` tokens.
        CheckpointError: the model produces NaN.
    """
    tokens = token_arrays(model, documents)
    check_longest(tokens, "longest", longest)
    windows = windows_at_length([len(document) for document in tokens], length=length, longest=longest, stride=stride)
    batches = score_windows(
        model,
        tokens,
        evenly_spread(windows, max(1, max_targets // stride)),
        lambda nats: nats.numpy(),
        batch_size=max(1, batch_size_tokens // length),
        progress=progress,
        description=f"{description} {length} tokens".lstrip(),
    )
    return np.concatenate(batches)


def choose_key_tokens(losses: Sequence[np.ndarray], contexts: Sequence[int]) -> np.ndarray:
    """Return for each target the context that contains its evidence, or 0 if it is not a key token: (windows, stride).

    `losses` are an evaluator's losses given each of `contexts`, the shortest first.
    """
    gain = losses[0] - losses[-1]
    is_key = (gain > _LEAST_GAIN) & (losses[-1] < _MOST_LOSS)
    evidence, kept = np.full(losses[0].shape, contexts[-1]), np.ones(losses[0].shape, dtype=bool)
    for context, given in reversed(list(zip(contexts[1:], losses[1:], strict=True))):
        kept &= losses[0] - given >= gain / 2  # from the longest down, so that a lucky short context does not count
        evidence = np.where(kept, context, evidence)
    return np.where(is_key, evidence, 0)


def find_key_tokens(
    evaluator: Subject,
    documents: Sequence[Document],
    *,
    contexts: Sequence[int],
    longest: int,
    max_targets: int,
    folder: Path,
    about: dict[str, Any],
) -> KeyTokens:
    """Let an evaluator choose key tokens among the targets of windows of `longest` tokens, or read its saved choice.

    The choice is saved in `folder`. `about` describes the texts: `data` in words, `tokens` as a digest.

    Raises:
        ConfigError: the folder holds another choice.
        DataError, CheckpointError: as `target_losses`.
    """
    settings = about | {"contexts": list(contexts), "longest": longest, "max_targets": max_targets}
    if kept := finished(KeyTokens, folder, settings, evaluator.weights):
        return kept
    stride = usual_stride(contexts[0])
    losses = [
        target_losses(
            *(evaluator.model, documents),
            length=context,
            longest=longest,
            stride=stride,
            max_targets=max_targets,
            description=f"key tokens by {evaluator.name}",
        )
        for context in contexts
    ]
    keys = KeyTokens(
        **evaluator.about(),
        data=about["data"],
        contexts=list(contexts),
        stride=stride,
        longest=longest,
        evidence=choose_key_tokens(losses, contexts).tolist(),
        settings=settings,
    )
    keys.write(folder)
    return keys


def long_perplexity(
    subject: Subject, documents: Sequence[Document], keys: KeyTokens, *, length: int, settings: dict[str, Any]
) -> LongPerplexity:
    """Measure a model on an evaluator's key tokens in the same texts, given `length` tokens.

    Raises:
        DataError, CheckpointError: as `target_losses`.
    """
    evidence = np.array(keys.evidence)
    losses = target_losses(
        subject.model,
        documents,
        length=length,
        longest=keys.longest,
        stride=keys.stride,
        max_targets=evidence.size,
        description=f"{subject.name}, LongPPL",
    )

    def on(chosen: np.ndarray) -> Perplexity | None:
        pairs = [(float(nats[mask].sum()), int(mask.sum())) for nats, mask in zip(losses, chosen, strict=True)]
        return perplexity_of([pair for pair in pairs if pair[1]]) if chosen.any() else None

    measured = {
        (before, context): found
        for before, context in zip(keys.contexts, keys.contexts[1:], strict=False)
        if (found := on(evidence == context))
    }
    everything = on(np.ones_like(evidence, dtype=bool))
    assert everything is not None
    return LongPerplexity(
        **subject.about(),
        evaluator=keys.model,
        evaluator_weights=keys.weights or "",
        data=keys.data,
        length=length,
        short=keys.contexts[0],
        num_targets=evidence.size,
        all_targets=everything,
        key_tokens=on(evidence > 0),
        by_distance=[
            PositionLoss(
                start=before,
                end=context,
                loss=found.loss,
                standard_error=found.standard_error,
                num_tokens=found.num_tokens,
            )
            for (before, context), found in measured.items()
        ],
        settings=settings,
    )
