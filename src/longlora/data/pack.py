"""Cuts the stream of all documents into rows of exactly one context length."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset, Features, List, Value
from filelock import FileLock

from longlora.errors import DataError

logger = logging.getLogger("longlora")

_ROW_FEATURES = Features({"input_ids": List(Value("int32")), "seq_lengths": List(Value("int32"))})
# Documents cut at once: a document may be a book of a million tokens.
_BATCH_DOCUMENTS = 64


def pack_rows(documents: Dataset, *, context_length: int, cross_document_attention: bool = False) -> Dataset:
    """Join documents in their order and cut them every `context_length` tokens, so that no row is padded.

    A document may continue in the next row. Tokens at the end that fill no row are left out; their number is logged.
    The rows are written beside the documents' own file and found there again; rows of documents in memory stay there.
    Processes that ask for the same at once wait for the first of them.

    Args:
        documents: a column `input_ids`, as `tokenize_documents` returns.
        context_length: tokens per row.
        cross_document_attention: whether a row counts as one piece, whatever documents it holds.

    Returns:
        Columns `input_ids` and `seq_lengths`, the lengths of the pieces of documents in the row: what TRL's collator
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
    try:
        with _one_at_a_time(documents):
            rows = documents.with_format("arrow").map(
                _row_cutter(context_length, cross_document_attention),
                batched=True,
                batch_size=_BATCH_DOCUMENTS,
                remove_columns=documents.column_names,
                features=_ROW_FEATURES,
                desc="Packing",
            )
    except OSError as error:
        raise DataError(
            f"packed rows cannot be written beside the tokenized documents ({error.strerror or error}); "
            "set data.cache_dir to a writable folder with room"
        ) from error
    logger.info(
        "packed %d tokens into %d rows of %d; %d at the end are left out",
        num_tokens,
        num_rows,
        context_length,
        num_left_out,
    )
    return rows.with_format(None)


def _one_at_a_time(documents: Dataset) -> AbstractContextManager[object]:
    """Lock the place where rows are written; documents in memory have none."""
    return FileLock(f"{documents.cache_files[0]['filename']}.lock") if documents.cache_files else nullcontext()


def count_tokens(documents: Dataset) -> int:
    """Count the tokens of a column `input_ids`."""
    tables = documents.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000)
    # An empty sum is null.
    return sum(
        pyarrow.compute.sum(pyarrow.compute.list_value_length(table["input_ids"])).as_py() or 0 for table in tables
    )


def _row_cutter(context_length: int, cross_document_attention: bool) -> Callable[[pyarrow.Table], pyarrow.Table]:
    """Make a function that takes documents, batch after batch, and returns the rows they complete.

    It carries the tokens of the unfinished row, and where documents begin in it, from one batch to the next; so the
    batches must come in order and through one process.
    """
    carried_tokens = np.empty(0, dtype=np.int32)
    carried_starts = np.empty(0, dtype=np.int64)

    def cut(documents: pyarrow.Table) -> pyarrow.Table:
        nonlocal carried_tokens, carried_starts
        column = documents["input_ids"]
        lengths = pyarrow.compute.list_value_length(column).to_numpy()
        starts = len(carried_tokens) + np.cumsum(lengths, dtype=np.int64) - lengths
        starts = np.concatenate([carried_starts, starts])
        # Views of the memory-mapped file until this one copy of the batch.
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
