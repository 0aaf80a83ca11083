"""Measure a model by name on texts by name: what `longlora eval` does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from longlora.data import read_documents, tokenize_documents
from longlora.data.sources import DocumentSource
from longlora.errors import ConfigError, DataError
from longlora.evaluation.binary import TOKEN_FILE_SUFFIX, read_token_file, write_token_file
from longlora.evaluation.haystack import Haystack, read_haystack
from longlora.evaluation.logits import Model, base_model
from longlora.evaluation.original import ORIGINAL_STRIDE, original_perplexity
from longlora.evaluation.perplexity import Perplexity, perplexity, perplexity_by_length
from longlora.evaluation.positions import loss_by_position
from longlora.evaluation.positions_report import PositionsResult
from longlora.evaluation.processes import joined
from longlora.evaluation.provenance import provenance
from longlora.evaluation.reader import check_positions
from longlora.evaluation.retrieval import run_retrieval
from longlora.evaluation.retrieval_report import write_result
from longlora.evaluation.scoring import Document
from longlora.evaluation.summary import RetrievalResult
from longlora.evaluation.trials import RetrievalTest
from longlora.model import load_config, load_for_inference, load_tokenizer, model_source
from longlora.positions import readable_context

Protocol = Literal["same-targets", "new", "all", "original"]


@dataclass(frozen=True)
class Texts:
    """Where texts are and how they are read; `read_documents` says what a source may be."""

    sources: Sequence[str]
    text_column: str = "text"
    split: str = "validation"
    max_documents: int | None = None

    def read(self) -> DocumentSource:
        """Find the documents."""
        return read_documents(
            list(self.sources), text_column=self.text_column, split=self.split, max_documents=self.max_documents
        )

    def tokens(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int, *, across_documents: bool = False
    ) -> Sequence[Document]:
        """Tokenise the documents, or map a `.bin` of tokens, which is one stream, into memory.

        Raises:
            DataError: the texts cannot be read, or a `.bin` stands beside other sources.
        """
        if any(source.endswith(TOKEN_FILE_SUFFIX) for source in self.sources):
            if len(self.sources) > 1:
                raise DataError(f"a .bin of tokens must be the only source, not one of {', '.join(self.sources)}")
            return [read_token_file(self.sources[0], vocabulary_size)]
        documents: Sequence[Document] = tokenize_documents(self.read(), tokenizer)["input_ids"]
        return [np.concatenate([np.asarray(document) for document in documents])] if across_documents else documents


def measure_perplexity(
    model_name: str,
    texts: Texts,
    *,
    lengths: Sequence[int] | None = None,
    stride: int | None = None,
    protocol: Protocol = "same-targets",
    across_documents: bool = False,
    max_targets: int | None = None,
) -> dict[int, Perplexity]:
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
    model, tokenizer = load_for_inference(model_name)
    context = _context(model)
    lengths = sorted(set(lengths or [context // 8, context // 4, context // 2, context]))
    documents = texts.tokens(tokenizer, _vocabulary_size(model), across_documents=across_documents)
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
            model, documents, lengths=lengths, stride=stride, max_targets=max_targets, description=model_name
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
) -> PositionsResult:
    """Load a model, read texts, and measure the loss by position in windows of `length` tokens.

    Raises:
        CheckpointError: the model cannot be loaded, or produces NaN.
        DataError: the texts cannot be read, or none is as long as a window.
        ConfigError: the window is longer than the model's positions, or a number is out of its range.
    """
    model, tokenizer = load_for_inference(model_name)
    length = length or _context(model)
    check_positions(model, length, beyond=beyond)
    documents = texts.tokens(tokenizer, _vocabulary_size(model), across_documents=across_documents)
    curve = loss_by_position(
        model, documents, length=length, num_buckets=num_buckets, max_windows=max_windows, description=model_name
    )
    return PositionsResult(
        model=model_name,
        length=length,
        num_windows=curve[0].num_tokens // (curve[0].end - curve[0].start),
        curve=curve,
        context=_context(model),
        provenance=provenance(),
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
) -> RetrievalResult | None:
    """Load a model, run a retrieval test and write its result; None in all processes but the first.

    Without `lengths`: an eighth, a quarter, a half and the whole of the model's context.

    Raises:
        CheckpointError, ConfigError, DataError: as `run_retrieval`; CheckpointError if the model cannot be loaded.
    """
    with joined() as processes:
        model, tokenizer = load_for_inference(model_name, device=processes.device)
        context = _context(model)
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
    vocabulary_size = load_config(name).get_text_config().vocab_size
    return write_token_file(path, texts.tokens(load_tokenizer(name), vocabulary_size), vocabulary_size)


def _context(model: Model) -> int:
    return readable_context(base_model(model).config)


def _vocabulary_size(model: Model) -> int:
    return base_model(model).config.get_text_config().vocab_size


def _most_windows(max_targets: int | None, targets_per_window: int) -> int | None:
    return None if max_targets is None else max(1, max_targets // targets_per_window)
