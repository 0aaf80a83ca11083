"""What a run leaves, the same under every strategy, and which checkpoint a strategy can resume from."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.errors import CheckpointError
from longlora.merge import write_adapter_card
from longlora.models.checkpoint import Extension, save_tokenizer, write_extension
from longlora.models.generation import transformers_model
from longlora.models.load import TrainingModel
from longlora.models.positions import write_older_keys
from longlora.support.choices import Strategy
from longlora.support.files import whole_directory
from longlora.training.callbacks import Stopwatch

if TYPE_CHECKING:
    from longlora.training.trainer import ExtensionTrainer

Weights = dict[str, torch.Tensor]

# As transformers' Trainer names them.
_PLAIN_OPTIMIZER = "optimizer.pt"
_FSDP_OPTIMIZER = "optimizer.bin"
_FSDP_WEIGHTS = "pytorch_model_fsdp.bin"
_DEEPSPEED_TAG = "latest"
# Who writes checkpoints of one form, and who else can resume from them.
_FORMS: dict[Strategy, str] = {
    "single": "unsharded",
    "ddp": "unsharded",
    "fsdp2": "fsdp2",
    "zero2": "deepspeed",
    "zero3": "deepspeed",
}
_READERS = {
    "unsharded": "single or ddp",
    "fsdp2": "fsdp2, ddp or single",
    "deepspeed": "the same of zero2 and zero3",
}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the steps of a run have made."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    """With its chat template after fine-tuning."""

    weights: Weights | None = None
    """What to save, on the main process, where the strategy divides the model; None where the model holds it all."""

    is_whole: bool = True
    """Whether this process holds the whole model."""

    watch: Stopwatch | None = None
    """What this start measured; None if it only finished what an earlier one trained."""


def gathered(trainer: "ExtensionTrainer", tokenizer: PreTrainedTokenizerBase) -> Trained:
    """Collect what was trained on the main process; every process must call."""
    return Trained(
        model=trainer.accelerator.unwrap_model(trainer.model),
        tokenizer=tokenizer,
        weights=gathered_weights(trainer),
        is_whole=not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled),
        watch=trainer.watch,
    )


def gathered_weights(trainer: "ExtensionTrainer") -> Weights | None:
    """Collect what was trained on the main process where the strategy divides it; None where the model holds it all."""
    if trainer.is_fsdp_enabled:
        is_adapter = isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=is_adapter)
        weights: dict[str, Any] = get_model_state_dict(trainer.model, options=options)
        if not is_adapter:  # PEFT sorts out tied weights by their names; gathered, they no longer share memory
            first_names = {name for name, _ in trainer.model.named_parameters()}
            for name, _ in trainer.model.named_parameters(remove_duplicate=False):
                if name not in first_names:
                    weights.pop(name, None)
        return weights
    if trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.deepspeed)
    return None


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
        found = "deepspeed"
    else:
        found = "fsdp2" if (checkpoint / _FSDP_OPTIMIZER).exists() else "unsharded"
    wanted = _FORMS[strategy]
    if found == wanted:
        return checkpoint
    if (found, wanted) == ("fsdp2", "unsharded"):
        return _unsharded(checkpoint)
    raise CheckpointError(
        f"{checkpoint} cannot be resumed with --strategy {strategy}: resume with {_READERS[found]}, or choose another "
        "output_dir to start again"
    )


def _unsharded(checkpoint: Path) -> Path:
    target = checkpoint.parent.parent / "converted" / checkpoint.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.name not in (_FSDP_WEIGHTS, _FSDP_OPTIMIZER):
            (target / path.name).symlink_to(path.absolute())
    named = torch.load(checkpoint / _FSDP_OPTIMIZER, map_location="cpu", weights_only=True)
    torch.save(_numbered(named), target / _PLAIN_OPTIMIZER)
    return target


def _numbered(named: dict[str, Any]) -> dict[str, Any]:
    """Turn an optimizer's state by parameters' names into one by their numbers, which count through the groups."""
    names = [name for group in named["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {numbers[name]: state for name, state in named["state"].items()},
        "param_groups": [
            {**group, "params": [numbers[name] for name in group["params"]]} for group in named["param_groups"]
        ],
    }
