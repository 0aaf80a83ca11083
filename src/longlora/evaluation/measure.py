"""Measure a model by name on texts by name: what `longlora eval` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError, DataError
from longlora.evaluation.haystack import Haystack, read_haystack
from longlora.evaluation.logits import Model, context_of, vocabulary_size
from longlora.evaluation.loss_by_position import PositionsResult, loss_by_position
from longlora.evaluation.perplexity import (
    ORIGINAL_STRIDE,
    Perplexity,
    PerplexityResult,
    original_perplexity,
    perplexity,
    perplexity_by_length,
)
from longlora.evaluation.processes import Processes, joined
from longlora.evaluation.reader import check_positions
from longlora.evaluation.retrieval import run_retrieval
from longlora.evaluation.retrieval_report import write_result
from longlora.evaluation.scoring import Document
from longlora.evaluation.shares import RetrievalResult
from longlora.evaluation.subject import model_identity, provenance
from longlora.evaluation.texts import TOKEN_FILE_SUFFIX, Texts, write_token_file
from longlora.evaluation.trials import RetrievalTest
from longlora.models.load import DtypeName, load_config, load_for_inference, load_tokenizer, model_source

Protocol = Literal["same-targets", "new", "all", "original"]


def measure_perplexity(
    model_name: str,
    texts: Texts,
    *,
    lengths: Sequence[int] | None = None,
    stride: int | None = None,
    protocol: Protocol = "same-targets",
    across_documents: bool = False,
    max_targets: int | None = None,
    device_map: str | None = None,
    dtype: DtypeName = "auto",
) -> PerplexityResult:
    """Load a model, read texts, and measure perplexity at each length by one of the protocols.

    `same-targets` is `perplexity_by_length`, `new` and `all` are `perplexity` with that `score`, `original` is
    `original_perplexity`, which joins documents always. Without `lengths`: an eighth, a quarter, a half and the whole
    of the model's context. Without `stride`: 256 tokens as in the paper, or half of the shortest length where that is
    less and the protocol needs it.

    Raises:
        CheckpointError: the model cannot be loaded.
        DataError: the texts cannot be read, or none is as long as the longest length.
        ConfigError: lengths and stride do not go together.
    """
    model, tokenizer = load_for_inference(model_name, dtype=dtype, device_map=device_map)
    context = context_of(model)
    lengths = sorted(set(lengths or [context // 8, context // 4, context // 2, context]))
    documents = texts.tokens(tokenizer, vocabulary_size(model), across_documents=across_documents)
    measured = _perplexity(model, documents, lengths, stride, protocol, max_targets, model_name)
    return PerplexityResult(
        model=model_name,
        weights=model_identity(model),
        context=context,
        protocol=protocol,
        data=texts.description,
        perplexity=measured,
        settings={"stride": stride, "across_documents": across_documents, "max_targets": max_targets},
        provenance=provenance(),
    )


def _perplexity(
    model: Model,
    documents: Sequence[Document],
    lengths: Sequence[int],
    stride: int | None,
    protocol: Protocol,
    max_targets: int | None,
    description: str,
) -> dict[int, Perplexity]:
    if protocol == "original":
        if max_targets is not None:
            raise ConfigError("the original's protocol scores all there is: leave --max-targets out, or give less text")
        return {
            length: original_perplexity(model, list(documents), window=length, stride=stride or ORIGINAL_STRIDE)
            for length in lengths
        }
    stride = stride or max(1, min(256, min(lengths) // 2))
    if protocol == "same-targets":
        return perplexity_by_length(
            model, documents, lengths=lengths, stride=stride, max_targets=max_targets, description=description
        )
    return {
        length: perplexity(
            model,
            documents,
            window=length,
            stride=stride,
            score=protocol,
            max_windows=_most_windows(max_targets, length - 1 if protocol == "all" else stride),
        )
        for length in lengths
    }


def measure_positions(
    model_name: str,
    texts: Texts,
    *,
    length: int | None = None,
    num_buckets: int = 32,
    max_windows: int | None = None,
    across_documents: bool = False,
    beyond: bool = False,
    device_map: str | None = None,
    dtype: DtypeName = "auto",
) -> PositionsResult:
    """Load a model, read texts, and measure the loss by position in windows of `length` tokens.

    Raises:
        CheckpointError: the model cannot be loaded, or produces NaN.
        DataError: the texts cannot be read, or none is as long as a window.
        ConfigError: the window is longer than the model's positions, or a number is out of its range.
    """
    model, tokenizer = load_for_inference(model_name, dtype=dtype, device_map=device_map)
    length = length or context_of(model)
    check_positions(model, length, beyond=beyond)
    documents = texts.tokens(tokenizer, vocabulary_size(model), across_documents=across_documents)
    curve = loss_by_position(
        model, documents, length=length, num_buckets=num_buckets, max_windows=max_windows, description=model_name
    )
    return PositionsResult(
        model=model_name,
        length=length,
        num_windows=curve[0].num_tokens // (curve[0].end - curve[0].start),
        curve=curve,
        context=context_of(model),
        provenance=provenance(),
        weights=model_identity(model),
    )


def measure_retrieval(
    model_name: str,
    test: RetrievalTest,
    *,
    output: str | Path,
    lengths: Sequence[int] | None = None,
    depths: Sequence[float],
    num_trials: int,
    seed: int = 0,
    bar: float,
    beyond: bool = False,
    device_map: str | None = None,
    dtype: DtypeName = "auto",
) -> RetrievalResult | None:
    """Load a model, run a retrieval test and write its result; None in all processes but the first.

    Without `lengths`: an eighth, a quarter, a half and the whole of the model's context.

    Raises:
        CheckpointError, ConfigError, DataError: as `run_retrieval`; CheckpointError if the model cannot be loaded,
            ConfigError if several processes are to spread a model each over all devices.
    """
    with joined() as processes:
        model, tokenizer = load_shared(model_name, processes, device_map, dtype)
        context = context_of(model)
        result = run_retrieval(
            model,
            tokenizer,
            test,
            lengths=lengths or [context // 8, context // 4, context // 2, context],
            depths=depths,
            num_trials=num_trials,
            seed=seed,
            bar=bar,
            beyond=beyond,
            output=output,
            model_name=model_name,
            processes=processes,
        )
        if processes.is_first:
            write_result(result, output)
    return result if processes.is_first else None


def load_shared(
    model_name: str, processes: Processes, device_map: str | None, dtype: DtypeName = "auto"
) -> tuple[Model, PreTrainedTokenizerBase]:
    """Load a model for this one of several processes.

    Raises:
        CheckpointError: the model cannot be loaded.
        ConfigError: several processes are to spread a model each over all devices.
    """
    if device_map and processes.count > 1:
        raise ConfigError(
            f"--device-map {device_map} spreads one model over all devices, and {processes.count} processes would each "
            "do so: start a single process"
        )
    return load_for_inference(model_name, dtype=dtype, device=processes.device, device_map=device_map)


def haystack_of(texts: Texts | None) -> Haystack | None:
    """Read the texts for a haystack; None, and so made-up sentences, for none.

    Raises:
        DataError: the texts cannot be read, or hold no words.
    """
    return read_haystack(text for _, text in texts.read()) if texts else None


def write_tokens(model_name: str, texts: Texts, path: str | Path) -> int:
    """Tokenise texts with a model's tokenizer and write them as a `.bin`; return the number of tokens.

    Raises:
        CheckpointError: the tokenizer cannot be loaded.
        DataError: the texts cannot be read, or the file is not named `.bin`.
    """
    if Path(path).suffix != TOKEN_FILE_SUFFIX:
        raise DataError(f"a token file must be named .bin, or it would be read as text; got {path}")
    name = model_source(model_name)
    size = load_config(name).get_text_config().vocab_size
    return write_token_file(path, texts.tokens(load_tokenizer(name), size), size)


def _most_windows(max_targets: int | None, targets_per_window: int) -> int | None:
    return None if max_targets is None else max(1, max_targets // targets_per_window)
