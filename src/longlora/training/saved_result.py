"""Save the result of a run, in the same form under every strategy."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.merge import write_adapter_card
from longlora.models.checkpoint import Extension, save_tokenizer, write_extension
from longlora.models.generation import transformers_model
from longlora.models.positions import write_older_keys
from longlora.support.files import whole_directory
from longlora.training.callbacks import ProgressBar


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the steps of a run produced."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    """With its chat template after fine-tuning."""

    weights: dict[str, torch.Tensor] | None = None
    """What to save, on the main process, if the strategy divides the model; None if the model holds it all."""

    measured: ProgressBar | None = None
    """Steps and speed of this start; None if it only finished what an earlier start trained."""


def save_result(trained: Trained, extension: Extension, target: Path) -> None:
    """Write the adapter or the whole model, with its tokenizer and the positions it was trained with."""
    model, tokenizer = trained.model, trained.tokenizer
    with whole_directory(target) as directory:
        if isinstance(model, PeftModel):
            # Trained embeddings are in it anyway; PEFT would add the base's as well if they were resized.
            model.save_pretrained(directory, save_embedding_layers=False, state_dict=trained.weights)
            if (generation := transformers_model(model).generation_config) is not None:
                generation.save_pretrained(directory)
        else:
            model.save_pretrained(directory, state_dict=trained.weights)
            write_older_keys(directory)
        tokenizer.model_max_length = extension.context_length
        save_tokenizer(tokenizer, directory)
        write_extension(directory, extension)
        if isinstance(model, PeftModel):
            write_adapter_card(directory, extension)
