"""What a run leaves, the same from every engine: an adapter or a model, with tokenizer and positions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel

from longlora.checkpoint import save_tokenizer, whole_directory, write_extension
from longlora.merge import write_adapter_card
from longlora.model import TrainingModel
from longlora.positions import write_older_keys
from longlora.register import forget_group_size
from longlora.training.processes import is_first, wait_for_all

if TYPE_CHECKING:
    from longlora.training.trainer import ExtensionTrainer

Weights = dict[str, torch.Tensor]


def save_result(trainer: "ExtensionTrainer", prepared: TrainingModel, target: Path) -> None:
    """Gather what was trained and write it from the first process; every process must call."""
    weights = gathered_weights(trainer)
    if is_first():
        with whole_directory(target) as directory:
            save_trained(trainer.accelerator.unwrap_model(trainer.model), prepared, directory, weights)
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
    forget_group_size(model)
    if isinstance(model, PeftModel):
        # Embeddings that were trained are in it anyhow; PEFT would add the base's as well where they were resized.
        model.save_pretrained(directory, save_embedding_layers=False, state_dict=weights)
    else:
        model.save_pretrained(directory, state_dict=weights)
        write_older_keys(directory)
    prepared.tokenizer.model_max_length = prepared.extension.context_length
    save_tokenizer(prepared.tokenizer, directory)
    write_extension(directory, prepared.extension)
    if isinstance(model, PeftModel):
        write_adapter_card(directory, prepared.extension)


def gathered_weights(trainer: "ExtensionTrainer") -> Weights | None:
    """Collect what was trained in the first process where the engine divides it; None where the model holds it all."""
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


def whole_model(trainer: "ExtensionTrainer") -> PreTrainedModel | PeftModel | None:
    """The trained model where this process holds all of it; None where the engine divides it."""
    return (
        None
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        else trainer.accelerator.unwrap_model(trainer.model)
    )


def _second_names(model: torch.nn.Module) -> set[str]:
    """Names of tied parameters beyond their first."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in model.named_parameters()}


def load_trained(prepared: TrainingModel, checkpoint: Path) -> PreTrainedModel | PeftModel:
    """Put a checkpoint's weights on a freshly prepared model."""
    if isinstance(prepared.model, PeftModel):
        prepared.model.load_adapter(str(checkpoint), "default", is_trainable=True)
        return prepared.model
    return type(prepared.model).from_pretrained(checkpoint, dtype=prepared.model.dtype)
