"""The rows that a recipe trains on, and those held out: of texts, or of conversations."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from longlora.config import Recipe
from longlora.data import (
    count_tokens,
    pack_conversations,
    pack_rows,
    read_conversations,
    read_documents,
    show_example,
    tokenize_conversations,
    tokenize_documents,
)
from longlora.models.chat_template import ensure_chat_template

logger = logging.getLogger("longlora")


@dataclass(frozen=True)
class Rows:
    """Columns `input_ids`, `seq_lengths` and, where not every token is learned, `labels`."""

    training: Dataset
    validation: Dataset | None

    @property
    def tokens_in_training(self) -> int:
        """Tokens in all rows to train on."""
        return count_tokens(self.training)


def read_rows(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, show_progress: bool) -> Rows:
    """Read, tokenise and pack what the recipe names; found in its cache when read before.

    For conversations a tokenizer without a chat template is given the paper's prompt, in place.

    Raises:
        DataError: the data cannot be read or used.
        ConfigError: the tokenizer does not serve for conversations.
    """
    data = recipe.data
    if data.kind == "sft" and ensure_chat_template(tokenizer):
        logger.info("the model has no chat template: questions and answers are written by the paper's prompt")
    training = _read(recipe, tokenizer, data.source, data.split, show_progress)
    if data.validation_source is None:
        return Rows(training, None)
    validation = _read(recipe, tokenizer, data.validation_source, data.validation_split, show_progress)
    return Rows(training, validation.select(range(min(len(validation), data.max_validation_rows))))


def _read(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, source: str | Sequence[str], split: str, show_progress: bool
) -> Dataset:
    data = recipe.data
    if data.kind == "sft":
        conversations = tokenize_conversations(
            read_conversations(source, split=split, max_documents=data.max_documents),
            tokenizer,
            context_length=recipe.context_length,
            cache_dir=data.cache_dir,
            show_progress=show_progress,
        )
        if show_progress and source == data.source:
            show_example(tokenizer, conversations[0]["input_ids"], conversations[0]["labels"])
        return pack_conversations(conversations, context_length=recipe.context_length, packing=data.packing)
    documents = tokenize_documents(
        read_documents(source, text_column=data.text_column, split=split, max_documents=data.max_documents),
        tokenizer,
        cache_dir=data.cache_dir,
        show_progress=show_progress,
    )
    return pack_rows(
        documents, context_length=recipe.context_length, cross_document_attention=data.cross_document_attention
    )
