"""The measurements behind `longlora eval`, on models and texts given by name."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from longlora.distributed import joined
from longlora.errors import ConfigError, DataError
from longlora.evaluation.drawing import write_result
from longlora.evaluation.key_tokens import find_key_tokens, ladder, long_perplexity
from longlora.evaluation.perplexity import (
    ORIGINAL_STRIDE,
    loss_by_position,
    original_perplexity,
    perplexity,
    perplexity_by_length,
)
from longlora.evaluation.questions import RetrievalTest
from longlora.evaluation.reader import check_positions
from longlora.evaluation.results import LongPerplexity, PerplexityByLength, Positions, Retrieval, ShortContext
from longlora.evaluation.retrieval import Sweep, retrieve
from longlora.evaluation.scoring import Document, token_digest, usual_stride
from longlora.evaluation.short_context import Losses, compare_losses, window_losses
from longlora.evaluation.subject import (
    Loading,
    Subject,
    base_of,
    load_subject,
    named_context,
    provenance,
    usual_lengths,
)
from longlora.evaluation.text_results import Perplexity
from longlora.evaluation.texts import TOKEN_FILE_SUFFIX, Texts, write_token_file
from longlora.models.load import load_config, load_tokenizer, model_source

Protocol = Literal["same-targets", "new", "all", "original"]


def measure_perplexity(
    model_name: str,
    texts: Texts,
    loading: Loading,
    *,
    lengths: Sequence[int] | None = None,
    stride: int | None = None,
    protocol: Protocol = "same-targets",
    max_targets: int | None = None,
) -> PerplexityByLength:
    """Load a model, read texts, and measure perplexity at each length by one of the protocols.

    `same-targets` is `perplexity_by_length`, `new` and `all` are `perplexity` with that `score`, and `original` is
    `original_perplexity`, which always joins documents. `lengths` defaults to an eighth, a quarter, a half and the
    whole of the model's context; `stride` to 256 tokens as in the paper, or half of the shortest length if that is
    less.

    Raises:
        CheckpointError: the model cannot be loaded.
        DataError: the texts cannot be read, or none is as long as the longest length.
        ConfigError: lengths and stride do not fit together.
    """
    if protocol == "original" and max_targets is not None:
        raise ConfigError("the original's protocol scores all the text: leave out --max-targets, or give less text")
    subject = load_subject(model_name, loading)
    documents = texts.tokens(subject.tokenizer, subject.vocabulary_size)
    lengths = sorted(set(lengths or usual_lengths(subject.context)))
    move = stride or (ORIGINAL_STRIDE if protocol == "original" else usual_stride(min(lengths)))

    def at_length(window: int) -> Perplexity:
        if protocol == "original":
            return original_perplexity(subject.model, documents, window=window, stride=move)
        targets = window - 1 if protocol == "all" else move
        most = None if max_targets is None else max(1, max_targets // targets)
        score: Literal["new", "all"] = "all" if protocol == "all" else "new"
        return perplexity(subject.model, documents, window=window, stride=move, score=score, max_windows=most)

    if protocol == "same-targets":
        measured = perplexity_by_length(
            subject.model, documents, lengths=lengths, stride=move, max_targets=max_targets, description=model_name
        )
    else:
        measured = {length: at_length(length) for length in lengths}
    return PerplexityByLength(
        **subject.about(),
        protocol=protocol,
        data=texts.description,
        perplexity=measured,
        settings={"stride": stride, "across_documents": texts.across_documents, "max_targets": max_targets},
    )


def measure_positions(
    model_name: str,
    texts: Texts,
    loading: Loading,
    *,
    length: int | None = None,
    num_buckets: int = 32,
    max_windows: int | None = None,
    beyond: bool = False,
) -> Positions:
    """Load a model, read texts, and measure the loss by position in windows of `length` tokens.

    Raises:
        CheckpointError: the model cannot be loaded, or produces NaN.
        DataError: the texts cannot be read, or none is as long as a window.
        ConfigError: the window is longer than the model's positions, or a number is out of range.
    """
    subject = load_subject(model_name, loading)
    length = length or subject.context
    check_positions(subject.model, length, beyond=beyond)
    documents = texts.tokens(subject.tokenizer, subject.vocabulary_size)
    return positions_of(
        subject, documents, length=length, num_buckets=num_buckets, max_windows=max_windows, settings={}
    )


def positions_of(
    subject: Subject,
    documents: Sequence[Document],
    *,
    length: int,
    num_buckets: int,
    max_windows: int | None,
    settings: dict[str, Any],
) -> Positions:
    """Measure the loss by position of a loaded model on tokenized documents.

    Raises:
        CheckpointError, DataError, ConfigError: as `loss_by_position`.
    """
    curve = loss_by_position(
        subject.model,
        documents,
        length=length,
        num_buckets=num_buckets,
        max_windows=max_windows,
        description=subject.name,
    )
    num_windows = curve[0].num_tokens // (curve[0].end - curve[0].start)
    return Positions(**subject.about(), length=length, num_windows=num_windows, curve=curve, settings=settings)


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

    def read(name: str) -> tuple[Subject, Sequence[Document], dict[str, Any]]:
        subject = load_subject(name, loading)
        documents = texts.tokens(subject.tokenizer, subject.vocabulary_size)
        return subject, documents, {"data": texts.description, "tokens": token_digest(documents)}

    chooser, documents, about = read(evaluator)
    longest, folder = max(length, contexts[-1]), Path(output)
    keys = find_key_tokens(
        *(chooser, documents), contexts=contexts, longest=longest, max_targets=max_targets, folder=folder, about=about
    )
    del chooser
    gc.collect()
    subject, documents, own = read(model_name)
    if own != about:
        raise ConfigError(f"{model_name} and {evaluator} tokenize the same texts differently: name another evaluator")
    return long_perplexity(subject, documents, keys, length=length, settings=keys.settings | {"length": length})


def measure_retrieval(
    model_name: str, test: RetrievalTest, sweep: Sweep, loading: Loading, *, output: str | Path
) -> Retrieval | None:
    """Load a model, run a retrieval test and write its result; return None in all processes but the first.

    Raises:
        CheckpointError, ConfigError, DataError: as `run_retrieval` and `load_subject`.
    """
    with joined() as processes:
        result = retrieve(load_subject(model_name, loading, processes), test, sweep, Path(output), processes)
        if not processes.is_first:
            return None
        write_result(result, output)
    return result


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

    def read(name: str) -> Losses:
        subject = load_subject(name, loading)
        documents = texts.tokens(subject.tokenizer, subject.vocabulary_size)
        losses = window_losses(
            subject.model, documents, length=length, stride=stride, max_targets=max_targets, description=name
        )
        return Losses(name, subject.weights, token_digest(documents), losses)

    settings = {"data": texts.description, "stride": stride, "across_documents": texts.across_documents}
    return compare_losses(
        read(base), read(model_name), length=length, stride=stride, settings=settings, provenance=provenance()
    )


def write_tokens(model_name: str, texts: Texts, path: str | Path) -> int:
    """Tokenize texts with a model's tokenizer and write them as a `.bin`; return the number of tokens.

    Raises:
        CheckpointError: the tokenizer cannot be loaded.
        DataError: the texts cannot be read, or the file is not named `.bin`.
    """
    if Path(path).suffix != TOKEN_FILE_SUFFIX:
        raise DataError(f"a token file must be named .bin, or it would be read as text; got {path}")
    name = model_source(model_name)
    size = load_config(name).get_text_config().vocab_size
    return write_token_file(path, texts.tokens(load_tokenizer(name), size), size)
