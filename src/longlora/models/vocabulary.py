"""Match the tokenizer's vocabulary with the embeddings' rows: always checked, extended only on request."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.errors import CheckpointError, ConfigError
from longlora.models.directories import ADAPTER_CONFIG

logger = logging.getLogger("longlora")


def fit_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, new_tokens: Sequence[str] = ()
) -> list[int]:
    """Add the new tokens to tokenizer and model, and return their ids.

    Embeddings often have more rows than the tokenizer has tokens (padded to a round number). These rows are used first;
    beyond them the embeddings are resized, to exactly the size needed. Without new tokens nothing is resized. A new
    token is initialized to the mean of the tokens in use, in both embeddings: it is then neither likely nor unlikely,
    and attracts no attention (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021;
    transformers' own `resize_token_embeddings` samples around the same mean).

    A new token that the tokenizer already has, because the model was trained with it before, keeps its row.

    Raises:
        ConfigError: the tokenizer has tokens, other than the new ones, for which the model has no row.
    """
    rows = model.get_input_embeddings().num_embeddings
    present = dict(tokenizer.get_vocab())
    homeless = sorted(token for token, number in present.items() if number >= rows)
    strangers = [token for token in homeless if token not in new_tokens]
    if strangers:
        raise ConfigError(
            f"the tokenizer has token ids up to {max(present.values())}, but the model has only {rows} rows for them; "
            f"{strangers[0]!r} has none. Use the model's own tokenizer, or list all {len(strangers)} such tokens in "
            "new_tokens"
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
    """Check that an embedding in an adapter has as many rows as in its base.

    Raises:
        CheckpointError: the vocabulary was extended before the adapter was trained, or it belongs to another base.
    """
    if found != rows:
        raise CheckpointError(
            f"the adapter in {adapter} has an embedding of {found:,} rows, but its base {base} has {rows:,}: the "
            "vocabulary was extended before training, and is not resized automatically. Resize the base with "
            f"transformers (model.resize_token_embeddings({found}), model.save_pretrained(FOLDER)), save its tokenizer "
            f"there too, and set base_model_name_or_path to FOLDER in {adapter / ADAPTER_CONFIG}"
        )


@torch.no_grad()
def _start_at_the_mean(embedding: nn.Module, fresh: Sequence[int], in_use: torch.Tensor) -> None:
    """Set rows of an embedding, and of its bias if it has one, to the mean of the rows in use."""
    for parameter in embedding.parameters(recurse=False):
        mean = parameter[in_use.to(parameter.device)].float().mean(dim=0)
        parameter[torch.tensor(fresh, device=parameter.device)] = mean.to(parameter.dtype)
