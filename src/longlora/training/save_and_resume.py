"""What a run leaves, the same under every strategy, and which checkpoint a strategy can resume from."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.errors import CheckpointError
from longlora.merge import write_adapter_card
from longlora.models.checkpoint import Extension, save_tokenizer, write_extension
from longlora.models.generation import transformers_model
from longlora.models.load import TrainingModel
from longlora.models.positions import write_older_keys
from longlora.support.choices import Strategy
from longlora.support.files import whole_directory
from longlora.training.callbacks import ProgressBar

# As transformers' Trainer names them.
_PLAIN_OPTIMIZER = "optimizer.pt"
_FSDP_OPTIMIZER = "optimizer.bin"
_FSDP_WEIGHTS = "pytorch_model_fsdp.bin"
_DEEPSPEED_TAG = "latest"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the steps of a run have made."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    """With its chat template after fine-tuning."""

    weights: dict[str, torch.Tensor] | None = None
    """What to save, on the main process, where the strategy divides the model; None where the model holds it all."""

    measured: ProgressBar | None = None
    """Steps and speed of this start; None if it only finished what an earlier one trained."""


def save_result(trained: Trained, extension: Extension, target: Path) -> None:
    """Write the adapter, or the whole model, with its tokenizer and the positions it was trained with."""
    model, tokenizer = trained.model, trained.tokenizer
    with whole_directory(target) as directory:
        if isinstance(model, PeftModel):
            # Embeddings that were trained are in it anyhow; PEFT would add the base's as well where they were resized.
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


def load_trained(prepared: TrainingModel, checkpoint: Path) -> PreTrainedModel | PeftModel:
    """Put a checkpoint's weights on a freshly prepared model."""
    if isinstance(prepared.model, PeftModel):
        prepared.model.load_adapter(str(checkpoint), "default", is_trainable=True)
        return prepared.model
    model = type(prepared.model).from_pretrained(checkpoint, dtype=prepared.model.dtype)
    model.generation_config = prepared.model.generation_config
    return model


def resumable(checkpoint: Path, strategy: Strategy) -> Path:
    """Give a checkpoint that a strategy can resume from: itself, or what FSDP2 wrote in the form of the unsharded ones.

    The converted one stands in the run's folder as `converted/checkpoint-N`, with the weights, the optimizer's state
    and the schedule; states of random generators are taken up where the number of processes is the same.

    Raises:
        CheckpointError: it was written under a strategy from which this one cannot resume.
    """
    if (checkpoint / _DEEPSPEED_TAG).exists():
        resumes, remedy = strategy in ("zero2", "zero3"), "the same of zero2 and zero3"
    elif (checkpoint / _FSDP_OPTIMIZER).exists():
        if strategy in ("single", "ddp"):
            return _unsharded(checkpoint)
        resumes, remedy = strategy == "fsdp2", "fsdp2, ddp or single"
    else:
        resumes, remedy = strategy in ("single", "ddp"), "single or ddp"
    if not resumes:
        raise CheckpointError(
            f"{checkpoint} cannot be resumed with --strategy {strategy}: resume with {remedy}, or choose another "
            "output_dir to start again"
        )
    return checkpoint


def _unsharded(checkpoint: Path) -> Path:
    """Convert an optimizer's state by parameters' names into one by their numbers, which count through the groups."""
    target = checkpoint.parent.parent / "converted" / checkpoint.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.name not in (_FSDP_WEIGHTS, _FSDP_OPTIMIZER):
            (target / path.name).symlink_to(path.absolute())
    named = torch.load(checkpoint / _FSDP_OPTIMIZER, map_location="cpu", weights_only=True)
    names = [name for group in named["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in named["param_groups"]]
    state = {numbers[name]: state for name, state in named["state"].items()}
    torch.save({"state": state, "param_groups": groups}, target / _PLAIN_OPTIMIZER)
    return target
