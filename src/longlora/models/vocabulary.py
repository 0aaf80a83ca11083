"""A tokenizer and the rows of the embeddings that go with it: checked always, grown only on request."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.errors import CheckpointError, ConfigError
from longlora.models.checkpoint import ADAPTER_CONFIG

logger = logging.getLogger("longlora")


def fit_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, new_tokens: Sequence[str] = ()
) -> list[int]:
    """Add the new tokens to tokenizer and model, and return their numbers.

    Embeddings often have more rows than the tokenizer has tokens (padded to a round number). Those rows are used first;
    only beyond them are the embeddings resized, to exactly what is needed. Without new tokens nothing is ever resized.
    A new token starts as the mean of the tokens in use, in both embeddings: then it is neither likely nor unlikely, and
    no attention is drawn to it (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021;
    transformers' own `resize_token_embeddings` draws from around the same mean).

    A new token that the tokenizer has already, because the model was trained with it before, keeps its row.

    Raises:
        ConfigError: the tokenizer has tokens, other than the new ones, for which the model has no row.
    """
    rows = model.get_input_embeddings().num_embeddings
    present = dict(tokenizer.get_vocab())
    homeless = sorted(token for token, number in present.items() if number >= rows)
    strangers = [token for token in homeless if token not in new_tokens]
    if strangers:
        raise ConfigError(
            f"the tokenizer has tokens up to number {max(present.values())} and the model has {rows} rows for them; "
            f"{strangers[0]!r} has none. Use the tokenizer that belongs to the model, or name all {len(strangers)} of "
            "them in new_tokens"
        )
    tokenizer.add_tokens([token for token in new_tokens if token not in present])
    numbers = tokenizer.convert_tokens_to_ids(list(new_tokens))
    fresh = [number for token, number in zip(new_tokens, numbers, strict=True) if present.get(token, rows) >= rows]
    if not fresh:
        return numbers
    in_use = torch.tensor(sorted(number for number in present.values() if number < rows))
    if max(fresh) >= rows:
        logger.info("embeddings resized from %s to %s rows for new tokens", f"{rows:,}", f"{max(fresh) + 1:,}")
        model.resize_token_embeddings(max(fresh) + 1, mean_resizing=False)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        if embedding is not None:
            _start_at_the_mean(embedding, fresh, in_use)
    return numbers


def check_rows(adapter: Path, *, found: int, rows: int, base: str) -> None:
    """See that an embedding in an adapter has as many rows as its base.

    Raises:
        CheckpointError: the vocabulary was grown before the adapter was trained, or it belongs to another base.
    """
    if found != rows:
        raise CheckpointError(
            f"the adapter in {adapter} holds an embedding of {found:,} rows and its base {base} has {rows:,}: the "
            "vocabulary was grown before it was trained, and nothing resizes it unasked. Resize the base with "
            f"transformers (model.resize_token_embeddings({found}), model.save_pretrained(FOLDER), and its tokenizer "
            f"with it), and name FOLDER as base_model_name_or_path in {adapter / ADAPTER_CONFIG}"
        )


@torch.no_grad()
def _start_at_the_mean(embedding: nn.Module, fresh: Sequence[int], in_use: torch.Tensor) -> None:
    """Set rows of an embedding, and of its bias if it has one, to the mean of the rows in use."""
    for parameter in embedding.parameters(recurse=False):
        mean = parameter[in_use.to(parameter.device)].float().mean(dim=0)
        parameter[torch.tensor(fresh, device=parameter.device)] = mean.to(parameter.dtype)
