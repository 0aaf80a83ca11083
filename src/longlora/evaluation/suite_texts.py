"""The part of a suite that scores texts: perplexity by length, loss by position, and the model against its base."""

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longlora.evaluation.loss_by_position import loss_by_position, write_positions
from longlora.evaluation.perplexity import perplexity_by_length
from longlora.evaluation.results import PerplexityByLength, Positions, ShortContext, SuiteRecord, finished
from longlora.evaluation.scoring import Document, usual_stride
from longlora.evaluation.short_context import compare_losses, window_losses
from longlora.evaluation.subject import Loading, Subject, load_subject, provenance
from longlora.evaluation.texts import Texts, joined
from longlora.models.load import load_config, model_source
from longlora.models.positions import readable_context

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


@dataclass(frozen=True, kw_only=True)
class TextJob:
    """What is to be measured on texts for one model, and where it is written."""

    texts: Texts
    lengths: list[int]
    """Of all models: the targets of the perplexity are chosen by them, so that they are the same for each."""

    curves: Curves
    base: str | None
    folder: Path
    record: SuiteRecord


@dataclass(frozen=True)
class ShortLosses:
    """A model's losses at its base's context, kept until the base has been read too."""

    losses: np.ndarray
    settings: dict[str, Any]


def measure_curves(subject: Subject, job: TextJob) -> ShortLosses | None:
    """Measure perplexity by length and loss by position, and the losses to compare with the base's, if it is known."""
    documents, about = _documents(subject, job.texts, length=max(job.lengths))
    available = max(map(len, documents))
    lengths = [length for length in job.record.lengths if length <= available]
    if lengths != job.record.lengths:
        job.record.left_out.append(
            f"perplexity and loss by position beyond {available:,} tokens, which is all the text there is: give more"
        )
    if lengths:
        about["targets"] = {
            "longest": max(length for length in job.lengths if length <= available),
            "stride": usual_stride(min(job.lengths)),
        }
        _perplexity(subject, job, documents, about, lengths)
        _positions(subject, job, documents, about, max(lengths))
    return _short_losses(subject, job)


def measure_short(own: ShortLosses, job: TextJob, loading: Loading) -> None:
    """Read the base on the same windows, and write the comparison."""
    assert job.base is not None
    base = load_subject(job.base, loading)
    length, stride = own.settings["length"], own.settings["stride"]
    documents, about = _documents(base, job.texts, length=length)
    if about["tokens"] != own.settings["tokens"]:
        note = f"short context: {base.name} reads other tokens in the same texts, and cannot be compared"
        job.record.left_out.append(note)
        return
    losses = window_losses(
        base.model,
        documents,
        length=length,
        stride=stride,
        max_targets=job.curves.short_targets,
        description=f"base {base.name}",
    )
    assert job.record.weights is not None
    compare_losses(
        losses,
        own.losses,
        names=(base.name, job.record.model),
        weights=(base.weights, job.record.weights),
        length=length,
        stride=stride,
        settings=own.settings,
        provenance=provenance(),
    ).write(job.folder / "short")
    del base
    gc.collect()


def _documents(subject: Subject, texts: Texts, *, length: int) -> tuple[Sequence[Document], dict[str, Any]]:
    """Tokenise texts, joined into one stream where none is `length` tokens long alone; say what decides the tokens."""
    documents = texts.tokens(subject.tokenizer, subject.vocabulary_size)
    too_short = max(map(len, documents)) < length
    if too_short:
        documents = [joined(documents)]
    digest = hashlib.sha256()
    for document in documents:
        digest.update(np.asarray(document, dtype=np.int64).tobytes() + b"|")
    return documents, {"data": texts.description, "tokens": digest.hexdigest()[:16], "joined": too_short}


def _perplexity(
    subject: Subject, job: TextJob, documents: Sequence[Document], about: dict[str, Any], lengths: list[int]
) -> None:
    settings, folder = {**about, "max_targets": job.curves.max_targets}, job.folder / "perplexity"
    stride, longest = about["targets"]["stride"], about["targets"]["longest"]
    before = finished(PerplexityByLength, folder, settings, subject.weights)
    measured = dict(before.perplexity) if before else {}
    for length in lengths:
        if length in measured:
            continue
        measured |= perplexity_by_length(
            subject.model,
            documents,
            lengths=[length],
            longest=longest,
            stride=stride,
            max_targets=max(stride, job.curves.max_targets),
            description="perplexity",
        )
        PerplexityByLength(  # after each length, so that an interruption costs one at most
            model=subject.name,
            weights=subject.weights,
            context=subject.context,
            protocol="same-targets",
            data=about["data"],
            perplexity=dict(sorted(measured.items())),
            settings=settings,
            provenance=provenance(),
        ).write(folder)


def _positions(
    subject: Subject, job: TextJob, documents: Sequence[Document], about: dict[str, Any], length: int
) -> None:
    settings, folder = {**about, "length": length, "max_windows": job.curves.max_windows}, job.folder / "positions"
    if finished(Positions, folder, settings, subject.weights):
        return
    curve = loss_by_position(
        subject.model,
        documents,
        length=length,
        num_buckets=min(_NUM_BUCKETS, length - 1),
        max_windows=job.curves.max_windows,
        description="loss",
    )
    result = Positions(
        model=subject.name,
        weights=subject.weights,
        context=subject.context,
        length=length,
        num_windows=curve[0].num_tokens // (curve[0].end - curve[0].start),
        curve=curve,
        settings=settings,
        provenance=provenance(),
    )
    write_positions(result, folder)


def _short_losses(subject: Subject, job: TextJob) -> ShortLosses | None:
    """The losses to compare; None where there is nothing to compare with, or it was done at an earlier start."""
    if job.base is None:
        job.record.left_out.append("short context: it is not known what the model was made of; name it with --base")
        return None
    if model_source(job.base) == model_source(subject.name):
        return None  # the base itself
    length = readable_context(load_config(model_source(job.base)))
    documents, about = _documents(subject, job.texts, length=length)
    if max(map(len, documents)) < length:
        note = f"short context: there is less text than the base's context, {length:,} tokens"
        job.record.left_out.append(note)
        return None
    stride, most = usual_stride(length), job.curves.short_targets
    settings = {**about, "base": job.base, "length": length, "stride": stride, "max_targets": most}
    if finished(ShortContext, job.folder / "short", settings, subject.weights):
        return None
    losses = window_losses(
        subject.model, documents, length=length, stride=stride, max_targets=most, description="short context"
    )
    return ShortLosses(losses, settings)
