"""The suite's measurements on texts: perplexity by length, loss by position, LongPPL, comparison with the base."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlora.evaluation.drawing import write_result
from longlora.evaluation.key_tokens import find_key_tokens, ladder, long_perplexity
from longlora.evaluation.measure import positions_of
from longlora.evaluation.perplexity import perplexity_by_length
from longlora.evaluation.results import (
    KeyTokens,
    LongPerplexity,
    PerplexityByLength,
    Positions,
    ShortContext,
    SuiteRecord,
    finished,
)
from longlora.evaluation.scoring import Document, joined, token_digest, usual_stride
from longlora.evaluation.short_context import Losses, compare_losses, window_losses
from longlora.evaluation.subject import Loading, Subject, load_subject, named_context, provenance
from longlora.evaluation.texts import Texts
from longlora.models.load import model_source


@dataclass(frozen=True, kw_only=True)
class Amount:
    """The amount of text to score."""

    max_targets: int  # tokens per length, for the perplexity
    max_windows: int  # windows of the whole context, for the loss by position
    short_targets: int  # tokens at the base context, for the comparison with the base


@dataclass(frozen=True, kw_only=True)
class TextJob:
    """The text measurements of one model, and where to write them."""

    texts: Texts
    lengths: list[int]  # of all models: they determine the perplexity's targets, which must be the same for each model
    amount: Amount
    base: str | None
    keys: KeyTokens | None
    folder: Path
    record: SuiteRecord


def measure_curves(subject: Subject, job: TextJob) -> Losses | None:
    """Measure perplexity by length, loss by position and LongPPL; return the losses to compare with a known base's."""
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
        _long_perplexity(subject, job, documents, about, max(lengths))
    return _own_losses(subject, job)


def _documents(subject: Subject, texts: Texts, *, length: int) -> tuple[Sequence[Document], dict[str, Any]]:
    """Tokenize texts, joining them if none has `length` tokens; return them with the settings that determine them."""
    documents = texts.tokens(subject.tokenizer, subject.vocabulary_size)
    too_short = max(map(len, documents)) < length
    if too_short:
        documents = joined(documents)
    return documents, {"data": texts.description, "tokens": token_digest(documents), "joined": too_short}


def _perplexity(
    subject: Subject, job: TextJob, documents: Sequence[Document], about: dict[str, Any], lengths: list[int]
) -> None:
    settings, folder = {**about, "max_targets": job.amount.max_targets}, job.folder / "perplexity"
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
            max_targets=max(stride, job.amount.max_targets),
            description="perplexity",
        )
        PerplexityByLength(  # written after each length, so that an interruption costs at most one
            **subject.about(),
            protocol="same-targets",
            data=about["data"],
            perplexity=dict(sorted(measured.items())),
            settings=settings,
        ).write(folder)


def _positions(
    subject: Subject, job: TextJob, documents: Sequence[Document], about: dict[str, Any], length: int
) -> None:
    most, folder = job.amount.max_windows, job.folder / "positions"
    settings = {**about, "length": length, "max_windows": most}
    if not finished(Positions, folder, settings, subject.weights):
        num_buckets = min(32, length - 1)
        result = positions_of(
            subject, documents, length=length, num_buckets=num_buckets, max_windows=most, settings=settings
        )
        write_result(result, folder)


def choose_keys(
    evaluator: str, texts: Texts, lengths: Sequence[int], amount: Amount, folder: Path, loading: Loading
) -> KeyTokens | None:
    """Let an evaluator choose the tokens that need far context, or read its choice; None if the texts are too short."""
    contexts = ladder(min(named_context(evaluator), max(lengths)))
    subject = load_subject(evaluator, loading)
    documents, about = _documents(subject, texts, length=max(lengths))
    if len(contexts) < 2 or max(map(len, documents)) < contexts[-1]:
        return None
    return find_key_tokens(
        *(subject, documents),
        contexts=contexts,
        longest=min(max(lengths), max(map(len, documents))),
        max_targets=max(usual_stride(contexts[0]), amount.max_targets),
        folder=folder,
        about=about,
    )


def _long_perplexity(
    subject: Subject, job: TextJob, documents: Sequence[Document], about: dict[str, Any], length: int
) -> None:
    if job.keys is None:
        job.record.left_out.append("LongPPL: no model is known to choose the tokens; name one with --evaluator")
        return
    if job.keys.settings["tokens"] != about["tokens"]:
        job.record.left_out.append(
            f"LongPPL: {job.keys.model}, which chose the tokens, tokenizes these texts differently"
        )
        return
    folder = job.folder / "longppl"
    settings = job.keys.settings | {"length": length, "evaluator": job.keys.weights}
    if not finished(LongPerplexity, folder, settings, subject.weights):
        long_perplexity(subject, documents, job.keys, length=length, settings=settings).write(folder)


def _own_losses(subject: Subject, job: TextJob) -> Losses | None:
    """Return the losses to compare with the base's; None if there is no base, or an earlier run compared them."""
    if job.base is None:
        job.record.left_out.append("short context: the model's base is unknown; name it with --base")
        return None
    if model_source(job.base) == model_source(subject.name):
        return None  # the base itself
    length = named_context(job.base)
    documents, about = _documents(subject, job.texts, length=length)
    if max(map(len, documents)) < length:
        note = f"short context: the text is shorter than the base's context, {length:,} tokens"
        job.record.left_out.append(note)
        return None
    if finished(ShortContext, job.folder / "short", _short_settings(job, about, length), subject.weights):
        return None
    return _losses(subject, job, documents, about, length, "short context")


def measure_short(own: Losses, job: TextJob, loading: Loading) -> None:
    """Score the base on the same windows, and write the comparison."""
    assert job.base is not None
    base, length = load_subject(job.base, loading), named_context(job.base)
    documents, about = _documents(base, job.texts, length=length)
    if about["tokens"] != own.tokens:
        note = f"short context: {base.name} tokenizes the same texts differently and cannot be compared"
        job.record.left_out.append(note)
        return
    losses, settings = (
        _losses(base, job, documents, about, length, f"base {base.name}"),
        _short_settings(job, about, length),
    )
    compare_losses(
        losses, own, length=length, stride=settings["stride"], settings=settings, provenance=provenance()
    ).write(job.folder / "short")
    del base
    gc.collect()


def _short_settings(job: TextJob, about: dict[str, Any], length: int) -> dict[str, Any]:
    own = {"base": job.base, "length": length, "stride": usual_stride(length), "max_targets": job.amount.short_targets}
    return about | own


def _losses(
    subject: Subject, job: TextJob, documents: Sequence[Document], about: dict[str, Any], length: int, description: str
) -> Losses:
    losses = window_losses(
        subject.model,
        documents,
        length=length,
        stride=usual_stride(length),
        max_targets=job.amount.short_targets,
        description=description,
    )
    return Losses(subject.name, subject.weights, about["tokens"], losses)
