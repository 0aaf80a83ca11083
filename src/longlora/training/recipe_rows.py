"""A recipe's training rows and held-out rows, from texts or conversations."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from longlora.config import Recipe
from longlora.data.conversation_rows import pack_conversations, tokenize_conversations
from longlora.data.document_rows import pack_rows, tokenize_documents
from longlora.data.encode import show_example
from longlora.data.sources import read_conversations, read_documents
from longlora.data.table_cache import content_digest
from longlora.models.chat_template import ensure_chat_template

logger = logging.getLogger("longlora")


class Rows(NamedTuple):
    """Data sets with columns `input_ids`, `seq_lengths` and, if not every token is learned, `labels`."""

    training: Dataset
    validation: Dataset | None

    def identity(self) -> dict[str, Any]:
        """Identify the rows, as JSON: equal for the same rows in the same order, wherever their texts are stored."""
        named = {"training rows": self.training, "validation rows": self.validation}
        return {
            name: f"{len(rows)} of sha256 {content_digest(rows)}" if rows is not None else None
            for name, rows in named.items()
        }


def read_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, show_progress: bool) -> Rows:
    """Read, tokenize and pack a recipe's data, or take it from the cache.

    For conversations, a tokenizer without a chat template is given the paper's prompt, in place.

    Raises:
        DataError: the data cannot be read or used.
        ConfigError: the tokenizer cannot be used for conversations.
    """
    data, context_length = recipe.data, recipe.context_length
    common: dict[str, Any] = {"cache_dir": data.cache_dir, "show_progress": show_progress}
    if data.kind == "sft" and ensure_chat_template(tokenizer):
        logger.info("the model has no chat template: conversations use the paper's prompt")

    def read(source: str | Sequence[str], split: str) -> Dataset:
        if data.kind == "text":
            texts = read_documents(source, text_column=data.text_column, split=split, max_documents=data.max_documents)
            documents = tokenize_documents(texts, tokenizer, **common)
            if source == data.source and data.long_document_repeats > 1:
                documents = with_long_repeated(
                    documents, tokens=data.long_document_tokens or context_length, times=data.long_document_repeats
                )
            crossing = data.cross_document_attention
            return pack_rows(documents, context_length=context_length, cross_document_attention=crossing)
        asked = read_conversations(source, split=split, max_documents=data.max_documents)
        conversations = tokenize_conversations(asked, tokenizer, context_length=context_length, **common)
        if show_progress and source == data.source:
            show_example(tokenizer, conversations[0]["input_ids"], conversations[0]["labels"])
        return pack_conversations(conversations, context_length=context_length, packing=data.packing)

    training = read(data.source, data.split)
    if data.validation_source is None:
        return Rows(training, None)
    validation = read(data.validation_source, data.validation_split)
    return Rows(training, validation.select(range(min(len(validation), data.max_validation_rows))))


def with_long_repeated(documents: Dataset, *, tokens: int, times: int) -> Dataset:
    """Return all documents once, then those of at least `tokens` tokens repeatedly, until each occurs `times` times."""
    tables = documents.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000)
    lengths = np.concatenate([pyarrow.compute.list_value_length(table["input_ids"]).to_numpy() for table in tables])
    long = np.flatnonzero(lengths >= tokens)
    before, added = int(lengths.sum()), int(lengths[long].sum()) * (times - 1)
    if not len(long):
        logger.warning("data.long_document_repeats has no effect: no document has %s tokens", f"{tokens:,}")
    logger.info(
        "%s of %s documents have %s tokens or more, and are read %d times: %s tokens become %s",
        f"{len(long):,}", f"{len(lengths):,}", f"{tokens:,}", times, f"{before:,}", f"{before + added:,}",
    )  # fmt: skip
    return documents.select(np.concatenate([np.arange(len(lengths)), *[long] * (times - 1)]))
