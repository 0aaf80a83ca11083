"""LongPPL: perplexity on the tokens that need far context (Fang et al. 2025, arXiv 2410.23771).

Most tokens can be predicted from the last few hundred before them, so an average over all tokens hides how a model uses
far context. Here an evaluator chooses, once, the tokens that it predicts with far context but not without it; every
model is measured on those. As for perplexity by length, the targets are the same at each context, `stride` per window.
"""

import gc
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from longlora.errors import ConfigError
from longlora.evaluation.perplexity import perplexity_of
from longlora.evaluation.results import KeyTokens, LongPerplexity, finished
from longlora.evaluation.scoring import check_longest, target_losses, usual_stride
from longlora.evaluation.subject import Loading, base_of, load_subject, named_context
from longlora.evaluation.text_results import Perplexity, PositionLoss
from longlora.evaluation.texts import ModelAndTexts, Texts

_LEAST_GAIN, _MOST_LOSS = 2.0, 2.0  # nats: the paper's alpha, and minus its beta
_PARTS = 8  # ratio of the long context to the short one; in the paper 32,768 to 4,096 tokens


def ladder(long: int, short: int | None = None) -> list[int]:
    """Return the contexts for an evaluator that reads `long` tokens: from `short` or an eighth, doubling each time."""
    contexts = [long]
    while contexts[0] // 2 >= (short or max(2, long // _PARTS)):
        contexts.insert(0, contexts[0] // 2)
    return [short, *contexts] if short and short < contexts[0] else contexts


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
    material: ModelAndTexts, *, contexts: Sequence[int], longest: int, max_targets: int, folder: Path
) -> KeyTokens:
    """Let an evaluator choose key tokens among the targets of windows of `longest` tokens, or read its saved choice.

    The choice is saved in `folder`.

    Raises:
        ConfigError: the folder holds another choice.
        DataError: no document has `longest` tokens.
        CheckpointError: the model produces NaN.
    """
    evaluator = material.subject
    settings = material.about | {"contexts": list(contexts), "longest": longest, "max_targets": max_targets}
    if kept := finished(KeyTokens, folder, settings, evaluator.weights):
        return kept
    check_longest(material.documents, "longest", longest)
    stride = usual_stride(contexts[0])
    losses = [
        target_losses(
            evaluator.model,
            material.documents,
            length=context,
            longest=longest,
            stride=stride,
            max_targets=max_targets,
            description=f"key tokens by {evaluator.name}",
        ).numpy()
        for context in contexts
    ]
    keys = KeyTokens(
        **evaluator.about(),
        data=material.texts.description,
        contexts=list(contexts),
        stride=stride,
        longest=longest,
        evidence=choose_key_tokens(losses, contexts).tolist(),
        settings=settings,
    )
    keys.write(folder)
    return keys


def long_perplexity(
    material: ModelAndTexts, keys: KeyTokens, *, length: int, settings: dict[str, Any]
) -> LongPerplexity:
    """Measure a model on an evaluator's key tokens in the same texts, given `length` tokens.

    Raises:
        CheckpointError: the model produces NaN.
    """
    subject, evidence = material.subject, np.array(keys.evidence)
    losses = target_losses(
        subject.model,
        material.documents,
        length=length,
        longest=keys.longest,
        stride=keys.stride,
        max_targets=evidence.size,
        description=f"{subject.name}, LongPPL",
    ).numpy()

    def on(chosen: np.ndarray) -> Perplexity:
        pairs = [(float(nats[mask].sum()), int(mask.sum())) for nats, mask in zip(losses, chosen, strict=True)]
        return perplexity_of([pair for pair in pairs if pair[1]])

    by_distance = [
        PositionLoss(start=before, end=context, **dict(on(chosen)))  # loss, error and number of tokens
        for before, context in pairwise(keys.contexts)
        if (chosen := evidence == context).any()
    ]
    return LongPerplexity(
        **subject.about(),
        evaluator=keys.model,
        evaluator_weights=keys.weights or "",
        data=keys.data,
        length=length,
        short=keys.contexts[0],
        num_targets=evidence.size,
        all_targets=on(np.ones_like(evidence, dtype=bool)),
        key_tokens=on(evidence > 0) if evidence.any() else None,
        by_distance=by_distance,
        settings=settings,
    )


def measure_long_perplexity(
    model_name: str,
    texts: Texts,
    loading: Loading,
    *,
    output: str | Path,
    evaluator: str | None = None,
    length: int | None = None,
    short: int | None = None,
    max_targets: int = 16384,
) -> LongPerplexity:
    """Let an evaluator choose the tokens that need far context, within its own context, and measure a model on them.

    The evaluator defaults to an adapter's base. Its choice is saved in `output` and reused for other models measured
    into the same folder.

    Raises:
        CheckpointError: a model cannot be loaded, or produces NaN.
        ConfigError: no evaluator is known, it tokenizes differently, or the folder holds another choice.
        DataError: the texts cannot be read, or none is as long as the longest length.
    """
    evaluator = evaluator or base_of(model_name)
    if evaluator is None:
        raise ConfigError(f"{model_name} does not name its base: choose an evaluator with --evaluator")
    contexts = ladder(named_context(evaluator), short)
    length = length or named_context(model_name)
    keys = find_key_tokens(
        texts.read_by(load_subject(evaluator, loading)),
        contexts=contexts,
        longest=max(length, contexts[-1]),
        max_targets=max_targets,
        folder=Path(output),
    )
    gc.collect()  # frees the evaluator's memory
    material = texts.read_by(load_subject(model_name, loading))
    if material.about["tokens"] != keys.settings["tokens"]:
        raise ConfigError(f"{model_name} and {evaluator} tokenize the same texts differently: name another evaluator")
    return long_perplexity(material, keys, length=length, settings=keys.settings | {"length": length})
