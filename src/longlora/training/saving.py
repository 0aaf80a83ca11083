"""What a run leaves, the same from every strategy: an adapter or a model, with tokenizer and positions."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel

from longlora.distributed import is_main_process, wait_for_all
from longlora.merge import write_adapter_card
from longlora.models.checkpoint import save_tokenizer, write_extension
from longlora.models.generation import transformers_model
from longlora.models.load import TrainingModel
from longlora.models.positions import write_older_keys
from longlora.support.files import whole_directory
from longlora.training.callbacks import Stopwatch

if TYPE_CHECKING:
    from longlora.training.trainer import ExtensionTrainer

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the steps of a run have made."""

    model: PreTrainedModel | PeftModel
    weights: Weights | None = None
    """What to save, in the main process, where the strategy divides the model; None where the model holds it all."""

    is_whole: bool = True
    """Whether this process holds the whole model."""

    watch: Stopwatch | None = None
    """What this start measured; None if it only finished what an earlier one trained."""


def gathered(trainer: "ExtensionTrainer") -> Trained:
    """Collect what was trained in the first process; every process must call."""
    return Trained(
        model=trainer.accelerator.unwrap_model(trainer.model),
        weights=gathered_weights(trainer),
        is_whole=not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled),
        watch=trainer.watch,
    )


def save_result(trained: Trained, prepared: TrainingModel, target: Path) -> None:
    """Write what was trained from the first process; every process must call."""
    if is_main_process():
        with whole_directory(target) as directory:
            save_trained(trained.model, prepared, directory, trained.weights)
    wait_for_all()


def save_trained(
    model: PreTrainedModel | PeftModel, prepared: TrainingModel, directory: Path, weights: Weights | None = None
) -> None:
    """Write the adapter, or the whole model, with its tokenizer and the positions it was trained with.

    Args:
        model: the model that was trained.
        prepared: its tokenizer and positions.
        directory: an empty folder.
        weights: what to write where the model itself holds only a part of it.
    """
    if isinstance(model, PeftModel):
        # Embeddings that were trained are in it anyhow; PEFT would add the base's as well where they were resized.
        model.save_pretrained(directory, save_embedding_layers=False, state_dict=weights)
        if (generation := transformers_model(model).generation_config) is not None:
            generation.save_pretrained(directory)
    else:
        model.save_pretrained(directory, state_dict=weights)
        write_older_keys(directory)
    prepared.tokenizer.model_max_length = prepared.extension.context_length
    save_tokenizer(prepared.tokenizer, directory)
    write_extension(directory, prepared.extension)
    if isinstance(model, PeftModel):
        write_adapter_card(directory, prepared.extension)


def gathered_weights(trainer: "ExtensionTrainer") -> Weights | None:
    """Collect what was trained in the main process where the strategy divides it; None where the model holds it all."""
    if trainer.is_fsdp_enabled:
        is_adapter = isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=is_adapter)
        weights: dict[str, Any] = get_model_state_dict(trainer.model, options=options)
        # Gathered, tied weights no longer share memory and would be written twice; PEFT sorts them out by their names.
        for name in set() if is_adapter else _second_names(trainer.model):
            weights.pop(name, None)
        return weights
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.deepspeed)
    return None


def _second_names(model: torch.nn.Module) -> set[str]:
    """Names of tied parameters beyond their first."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in model.named_parameters()}


def load_trained(prepared: TrainingModel, checkpoint: Path) -> PreTrainedModel | PeftModel:
    """Put a checkpoint's weights on a freshly prepared model."""
    if isinstance(prepared.model, PeftModel):
        prepared.model.load_adapter(str(checkpoint), "default", is_trainable=True)
        return prepared.model
    model = type(prepared.model).from_pretrained(checkpoint, dtype=prepared.model.dtype)
    model.generation_config = prepared.model.generation_config
    return model
