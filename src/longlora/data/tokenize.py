"""Turns documents into token ids, once, and keeps them on disk."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from longlora.data.cache import Summary, cached_dataset, tokenizer_identity
from longlora.data.sources import DocumentSource

logger = logging.getLogger("longlora")

# Raise it when the same source and tokenizer come to give other ids or columns.
FORMAT_VERSION = 1

_SCHEMA = pyarrow.schema({"name": pyarrow.string(), "input_ids": pyarrow.list_(pyarrow.int32())})
# Given to the tokenizer at once: several books, so that it can use several cores.
_BATCH_CHARACTERS = 4_000_000
_BATCH_DOCUMENTS = 1000


def tokenize_documents(
    source: DocumentSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> Dataset:
    """Tokenize every document, with the tokenizer's own special tokens and its EOS at the end.

    The result is memory-mapped from `cache_dir` (default: `longlora` in the user's cache folder) and found there again
    while source and tokenizer are the same. Processes that ask for the same at once wait for the first of them.

    Args:
        source: documents from `read_documents`.
        tokenizer: any tokenizer of transformers; documents may be longer than its `model_max_length`.
        cache_dir: folder that may grow by four bytes per token.
        show_progress: whether to draw a bar that counts documents and tokens.

    Returns:
        Columns `name` (string) and `input_ids` (list of int32), one row per document.

    Raises:
        DataError: the source cannot be read, or the cache cannot be written.
    """
    documents, summary = cached_dataset(
        [FORMAT_VERSION, source.identity, tokenizer_identity(tokenizer)],
        lambda writer: _write_documents(writer, source, tokenizer, show_progress),
        schema=_SCHEMA,
        cache_dir=cache_dir,
    )
    logger.info("%(num_rows)d documents of %(num_tokens)d tokens", summary)
    return documents


def _write_documents(
    writer: pyarrow.ipc.RecordBatchStreamWriter,
    source: DocumentSource,
    tokenizer: PreTrainedTokenizerBase,
    show_progress: bool,
) -> Summary:
    num_documents = num_tokens = 0
    with tqdm(desc="Tokenizing", total=source.num_documents, unit=" documents", disable=not show_progress) as bar:
        for names, texts in _batches(source):
            batch_ids = _tokenize(texts, tokenizer)
            writer.write_batch(pyarrow.record_batch([names, batch_ids], schema=_SCHEMA))
            num_documents += len(names)
            num_tokens += sum(map(len, batch_ids))
            bar.update(len(names))
            bar.set_postfix(tokens=f"{num_tokens:,}")
    return {"num_rows": num_documents, "num_tokens": num_tokens}


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    # verbose=False: no warning about documents longer than the old context; they are what this is for.
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
