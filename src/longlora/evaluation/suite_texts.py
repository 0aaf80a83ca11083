"""The part of a suite that scores texts: perplexity by length, loss by position, and the model against its base."""

import gc
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError
from longlora.evaluation.logits import Model, vocabulary_size
from longlora.evaluation.loss_by_position import PositionsResult, loss_by_position, write_positions
from longlora.evaluation.perplexity import (
    PERPLEXITY_FILE,
    Perplexity,
    PerplexityResult,
    perplexity_by_length,
    write_perplexity,
)
from longlora.evaluation.scoring import Document
from longlora.evaluation.short_context import (
    SHORT_CONTEXT_FILE,
    compare_losses,
    window_losses,
    write_short_context,
)
from longlora.evaluation.subject import model_identity, provenance
from longlora.evaluation.texts import Texts
from longlora.models.load import DtypeName, load_config, load_for_inference, model_source
from longlora.models.positions import readable_context

if TYPE_CHECKING:
    from longlora.evaluation.suite import SuiteRecord


_NUM_BUCKETS = 32


@dataclass(frozen=True, kw_only=True)
class Curves:
    """How much text is scored."""

    max_targets: int
    """Tokens scored at each length, for the perplexity."""

    max_windows: int
    """Windows of the whole context, for the loss by position."""

    short_targets: int
    """Tokens scored at the base's own context."""


class SuiteTexts:
    """Texts as the tokens of one tokenizer; joined into one stream where no document is long enough alone."""

    def __init__(self, texts: Texts, lengths: Sequence[int]) -> None:
        self.description = texts.description
        self.lengths = list(lengths)
        """Of all models: the targets of the perplexity are chosen by them, so that they are the same for each."""

        self._texts = texts

    def tokens(
        self, tokenizer: PreTrainedTokenizerBase, size: int, *, length: int
    ) -> tuple[Sequence[Document], dict[str, Any]]:
        """Return documents of which at least one has `length` tokens, if there are as many, and what decides them."""
        documents = self._texts.tokens(tokenizer, size)
        joined = max(map(len, documents)) < length
        if joined:
            documents = [np.concatenate([np.asarray(document) for document in documents])]
        digest = hashlib.sha256()
        for document in documents:
            digest.update(np.asarray(document, dtype=np.int64).tobytes() + b"|")
        return documents, {"data": self.description, "tokens": digest.hexdigest()[:16], "joined": joined}


@dataclass(frozen=True)
class ShortLosses:
    """A model's losses at its base's context, kept until the base has been read too."""

    losses: np.ndarray | None
    length: int
    settings: dict[str, Any]


def measure_curves(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    texts: SuiteTexts,
    record: "SuiteRecord",
    curves: Curves,
    folder: Path,
    base: str | None,
) -> ShortLosses | None:
    """Measure perplexity by length and loss by position, and the losses to compare with the base's, if it is known."""
    documents, about = texts.tokens(tokenizer, vocabulary_size(model), length=max(texts.lengths))
    available = max(map(len, documents))
    lengths = [length for length in record.lengths if length <= available]
    if lengths != record.lengths:
        record.left_out.append(
            f"perplexity and loss by position beyond {available:,} tokens, which is all the text there is: give more"
        )
    if lengths:
        about["targets"] = {
            "longest": max(length for length in texts.lengths if length <= available),
            "stride": max(1, min(256, min(texts.lengths) // 2)),
        }
        _perplexity(model, documents, about, lengths, record, curves, folder / "perplexity")
        _positions(model, documents, about, max(lengths), record, curves, folder / "positions")
    return _short_losses(model, tokenizer, texts, record, curves, folder, base)


def measure_short(
    base: str,
    own: ShortLosses,
    texts: SuiteTexts,
    record: "SuiteRecord",
    curves: Curves,
    folder: Path,
    device_map: str | None,
    dtype: DtypeName,
) -> None:
    """Read the base on the same windows, and write the comparison."""
    if own.losses is None:  # done at an earlier start
        return
    model, tokenizer = load_for_inference(base, dtype=dtype, device_map=device_map)
    documents, about = texts.tokens(tokenizer, vocabulary_size(model), length=own.length)
    if about["tokens"] != own.settings["tokens"]:
        record.left_out.append(f"short context: {base} reads other tokens in the same texts, and cannot be compared")
        return
    stride = own.settings["stride"]
    losses = window_losses(
        model,
        documents,
        length=own.length,
        stride=stride,
        max_targets=curves.short_targets,
        description=f"base {base}",
    )
    result = compare_losses(
        losses,
        own.losses,
        names=(base, record.model),
        weights=(model_identity(model), record.weights),
        length=own.length,
        stride=stride,
        settings=own.settings,
        provenance=provenance(),
    )
    write_short_context(result, folder / "short")
    del model
    gc.collect()


def finished(path: Path, settings: dict[str, Any], weights: str) -> dict[str, Any] | None:
    """Return a result that an earlier start wrote; None if there is none.

    Raises:
        ConfigError: it is about other weights, or was measured otherwise.
    """
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    there, here = (json.loads(json.dumps(values)) for values in (content.get("settings"), settings))
    if (there, content.get("weights")) != (here, weights):
        raise ConfigError(
            f"{path} holds another measurement ({there}, weights {content.get('weights')}; now {here}, weights "
            f"{weights}): choose another folder, or delete that one"
        )
    return content


def _perplexity(
    model: Model,
    documents: Sequence[Document],
    about: dict[str, Any],
    lengths: list[int],
    record: "SuiteRecord",
    curves: Curves,
    folder: Path,
) -> None:
    settings = {**about, "max_targets": curves.max_targets}
    stride, longest = about["targets"]["stride"], about["targets"]["longest"]
    before = finished(folder / PERPLEXITY_FILE, settings, record.weights)
    measured = {int(length): _read_back(row) for length, row in before["perplexity"].items()} if before else {}
    for length in lengths:
        if length in measured:
            continue
        measured |= perplexity_by_length(
            model,
            documents,
            lengths=[length],
            longest=longest,
            stride=stride,
            max_targets=max(stride, curves.max_targets),
            description="perplexity",
        )
        result = PerplexityResult(
            model=record.model,
            weights=record.weights,
            context=record.context,
            protocol="same-targets",
            data=about["data"],
            perplexity=dict(sorted(measured.items())),
            settings=settings,
            provenance=provenance(),
        )
        write_perplexity(result, folder)  # after each length, so that an interruption costs one at most


def _read_back(row: dict[str, Any]) -> Perplexity:
    values: dict[str, Any] = {name: math.nan if value is None else value for name, value in row.items()}
    return Perplexity(**values)


def _positions(
    model: Model,
    documents: Sequence[Document],
    about: dict[str, Any],
    length: int,
    record: "SuiteRecord",
    curves: Curves,
    folder: Path,
) -> None:
    settings = {**about, "length": length, "max_windows": curves.max_windows}
    if finished(folder / "positions.json", settings, record.weights):
        return
    curve = loss_by_position(
        model,
        documents,
        length=length,
        num_buckets=min(_NUM_BUCKETS, length - 1),
        max_windows=curves.max_windows,
        description="loss",
    )
    result = PositionsResult(
        model=record.model,
        length=length,
        context=record.context,
        num_windows=curve[0].num_tokens // (curve[0].end - curve[0].start),
        curve=curve,
        provenance=provenance(),
        weights=record.weights,
        settings=settings,
    )
    write_positions(result, folder)


def _short_losses(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    texts: SuiteTexts,
    record: "SuiteRecord",
    curves: Curves,
    folder: Path,
    base: str | None,
) -> ShortLosses | None:
    if base is None:
        record.left_out.append("short context: it is not known what the model was made of; name it with --base")
        return None
    if model_source(base) == model_source(record.model):
        return None  # the base itself
    length = readable_context(load_config(model_source(base)))
    documents, about = texts.tokens(tokenizer, vocabulary_size(model), length=length)
    if max(map(len, documents)) < length:
        record.left_out.append(f"short context: there is less text than the base's context, {length:,} tokens")
        return None
    stride = max(1, min(256, length // 2))
    settings = {**about, "base": base, "length": length, "stride": stride, "max_targets": curves.short_targets}
    if finished(folder / "short" / SHORT_CONTEXT_FILE, settings, record.weights):
        return ShortLosses(None, length, settings)
    losses = window_losses(
        model, documents, length=length, stride=stride, max_targets=curves.short_targets, description="short context"
    )
    return ShortLosses(losses, length, settings)
