"""Turn documents into rows of exactly one context length: tokenized once, then cut as one stream."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerBase

from longlora.data.sources import DocumentSource
from longlora.data.table_cache import Summary, cached_dataset, rows_beside, tokenizer_identity
from longlora.errors import DataError
from longlora.support.progress import progress_bar

logger = logging.getLogger("longlora")

# Increment when the same source and tokenizer produce different ids or columns.
FORMAT_VERSION = 1

_DOCUMENT_FEATURES = Features({"name": Value("string"), "input_ids": List(Value("int32"))})
_ROW_FEATURES = Features({"input_ids": List(Value("int32")), "seq_lengths": List(Value("int32"))})
# Given to the tokenizer at once: several books, so it can use several cores.
_BATCH_CHARACTERS = 4_000_000
_BATCH_DOCUMENTS = 1000
# Cut at once: a document may be a book of a million tokens.
_CUT_DOCUMENTS = 64


def tokenize_documents(
    source: DocumentSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> Dataset:
    """Tokenize every document, with the tokenizer's own special tokens and its EOS at the end.

    The result is memory-mapped from `cache_dir` (default: `longlora` in the user's cache folder), and reused as long as
    source and tokenizer stay the same. Concurrent processes wait for the first of them. Documents may be longer than
    the tokenizer's `model_max_length`. The cache grows by four bytes per token.

    Returns:
        Columns `name` (string) and `input_ids` (list of int32), one row per document.

    Raises:
        DataError: the source cannot be read, or the cache cannot be written.
    """
    documents, summary = cached_dataset(
        [FORMAT_VERSION, source.identity, tokenizer_identity(tokenizer)],
        lambda writer: _write_documents(writer, source, tokenizer, show_progress),
        features=_DOCUMENT_FEATURES,
        cache_dir=cache_dir,
    )
    logger.info("%s documents with %s tokens", f"{summary['num_rows']:,}", f"{summary['num_tokens']:,}")
    return documents


def pack_rows(documents: Dataset, *, context_length: int, cross_document_attention: bool = False) -> Dataset:
    """Join documents in order and cut them every `context_length` tokens, without padding.

    A document may continue in the next row. Tokens at the end that do not fill a row are left out; their number is
    logged. The rows are cached beside the documents' own file; rows of documents in memory stay in memory. Concurrent
    processes wait for the first of them.

    With `cross_document_attention`, a row counts as one piece, whatever documents it contains.

    Returns:
        Columns `input_ids` and `seq_lengths`, the lengths of the pieces of documents in the row, which TRL's collator
        turns into positions and cut points.

    Raises:
        DataError: fewer tokens than one row, or the rows cannot be written.
    """
    num_tokens = count_tokens(documents)
    num_rows, num_left_out = divmod(num_tokens, context_length)
    if num_rows == 0:
        raise DataError(
            f"the documents must fill at least one row of context_length={context_length} tokens, found {num_tokens} "
            "tokens; add documents or lower context_length"
        )

    def pack(**map_arguments: Any) -> Dataset:
        return documents.with_format("arrow").map(
            _row_cutter(context_length, cross_document_attention),
            batched=True,
            batch_size=_CUT_DOCUMENTS,
            remove_columns=documents.column_names,
            features=_ROW_FEATURES,
            desc="Packing",
            **map_arguments,
        )

    rows = rows_beside(documents, [FORMAT_VERSION, context_length, cross_document_attention], pack)
    counts = num_tokens, num_rows, context_length, num_left_out
    logger.info("packed %s tokens into %s rows of %s; %s at the end are left out", *(f"{n:,}" for n in counts))
    return rows.with_format(None)


def count_tokens(documents: Dataset) -> int:
    """Count the tokens of a column `input_ids`."""
    tables = documents.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000)
    lengths = (pyarrow.compute.list_value_length(table["input_ids"]) for table in tables)
    return sum(pyarrow.compute.sum(each).as_py() or 0 for each in lengths)  # an empty sum is null


def _write_documents(
    writer: ArrowWriter, source: DocumentSource, tokenizer: PreTrainedTokenizerBase, show_progress: bool
) -> Summary:
    summary = {"num_rows": 0, "num_tokens": 0}
    with progress_bar("Tokenizing documents", total=source.num_documents, show_progress=show_progress) as advance:
        for names, texts in _batches(source):
            batch_ids = _tokenize(texts, tokenizer)
            writer.write_batch({"name": names, "input_ids": batch_ids})
            summary["num_rows"] += len(names)
            summary["num_tokens"] += sum(map(len, batch_ids))
            advance(len(names), f"{summary['num_tokens']:,} tokens")
    return summary


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    # verbose=False: no warning about documents longer than the old context, which are the point here.
    batch_ids = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]
    eos = tokenizer.eos_token_id
    return [ids if eos is None or ids[-1:] == [eos] else [*ids, eos] for ids in batch_ids]


def _batches(source: DocumentSource) -> Iterator[tuple[list[str], list[str]]]:
    names: list[str] = []
    texts: list[str] = []
    num_characters = 0
    for name, text in source:
        names.append(name)
        texts.append(text)
        num_characters += len(text)
        if num_characters >= _BATCH_CHARACTERS or len(texts) == _BATCH_DOCUMENTS:
            yield names, texts
            names, texts, num_characters = [], [], 0
    if texts:
        yield names, texts


def _row_cutter(context_length: int, cross_document_attention: bool) -> Callable[[pyarrow.Table], pyarrow.Table]:
    """Return a function that takes batches of documents and returns the rows they complete.

    It carries the tokens of the unfinished row, and where documents begin in it, from one batch to the next, so batches
    must come in order and in one process.
    """
    carried_tokens = np.empty(0, dtype=np.int32)
    carried_starts = np.empty(0, dtype=np.int64)

    def cut(documents: pyarrow.Table) -> pyarrow.Table:
        nonlocal carried_tokens, carried_starts
        column = documents["input_ids"]
        lengths = pyarrow.compute.list_value_length(column).to_numpy()
        starts = len(carried_tokens) + np.cumsum(lengths, dtype=np.int64) - lengths
        starts = np.concatenate([carried_starts, starts])
        # The only copy of the batch; until here, all are views of the memory-mapped file.
        tokens = np.concatenate([carried_tokens, *(chunk.flatten().to_numpy() for chunk in column.chunks)])

        row_starts = np.arange(0, len(tokens) + 1, context_length)
        num_packed = row_starts[-1]
        is_packed = starts < num_packed
        cuts = row_starts if cross_document_attention else np.union1d(row_starts, starts[is_packed])
        carried_tokens = tokens[num_packed:].copy()
        carried_starts = starts[~is_packed] - num_packed
        return pyarrow.table(
            {
                "input_ids": _as_lists(row_starts, tokens[:num_packed]),
                "seq_lengths": _as_lists(np.searchsorted(cuts, row_starts), np.diff(cuts)),
            }
        )

    return cut


def _as_lists(offsets: np.ndarray, values: np.ndarray) -> pyarrow.ListArray:
    return pyarrow.ListArray.from_arrays(
        pyarrow.array(offsets, pyarrow.int32()), pyarrow.array(values.astype(np.int32, copy=False))
    )
