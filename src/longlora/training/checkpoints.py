"""Checkpoints of a run, and its result: how they are sealed, and what a strategy can resume from.

transformers' `Trainer` writes the files of `checkpoint-N`: weights through our `save_model` (`trainer.py`), then
optimizer, schedule and random states. `SealCheckpoints` is called after that and seals the folder
(`support/digests.py`). A folder without a seal was cut short, and one that differs from its seal is damaged; a run
resumes from neither.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from trl import SFTConfig

from longlora.distributed import wait_for_everyone
from longlora.errors import CheckpointError
from longlora.merge import write_adapter_card
from longlora.models.directories import Extension, is_adapter, save_tokenizer, write_extension
from longlora.models.generation import transformers_model
from longlora.models.load import TrainingModel
from longlora.models.older_keys import write_older_keys
from longlora.support.choices import Strategy
from longlora.support.digests import seal
from longlora.support.files import whole_directory
from longlora.training.callbacks import ProgressBar

# As transformers' Trainer names them.
_PLAIN_OPTIMIZER = "optimizer.pt"
_FSDP_OPTIMIZER = "optimizer.bin"
_FSDP_WEIGHTS = "pytorch_model_fsdp.bin"
_DEEPSPEED_TAG = "latest"


class SealCheckpoints(TrainerCallback):
    """Seals a checkpoint once every process has written its part.

    The last one of a run omits most of the optimizer's state, because no step follows that would need it.
    """

    def __init__(self, folder: Path, extension: Extension) -> None:
        self._folder = folder
        self._extension = extension

    def on_step_end(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell the trainer, which saves after this, whether to omit the optimizer's state."""
        args.save_only_model = state.global_step >= state.max_steps

    def on_save(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Make this step's checkpoint loadable as an adapter or model, and seal it."""
        wait_for_everyone()
        if state.is_world_process_zero:
            finish_checkpoint(self._folder / f"checkpoint-{state.global_step}", self._extension)


def finish_checkpoint(checkpoint: Path, extension: Extension) -> None:
    """Write what makes a checkpoint an adapter or model in its own right, and seal it."""
    write_extension(checkpoint, extension)
    if is_adapter(checkpoint):
        write_adapter_card(checkpoint, extension)
    seal(checkpoint)


def load_trained(prepared: TrainingModel, checkpoint: Path) -> PreTrainedModel | PeftModel:
    """Load a checkpoint's weights into a freshly prepared model."""
    if isinstance(prepared.model, PeftModel):
        prepared.model.load_adapter(str(checkpoint), "default", is_trainable=True)
        return prepared.model
    model = type(prepared.model).from_pretrained(checkpoint, dtype=prepared.model.dtype)
    model.generation_config = prepared.model.generation_config
    return model


def resumable(checkpoint: Path, strategy: Strategy) -> Path:
    """Return a checkpoint that a strategy can resume from: the given one, or an FSDP2 one converted to unsharded form.

    The converted one is written to `converted/checkpoint-N` in the run's folder, with the weights, the optimizer's
    state and the schedule; random states are restored if the number of processes is the same.

    Raises:
        CheckpointError: it was written under a strategy from which this one cannot resume.
    """
    if (checkpoint / _DEEPSPEED_TAG).exists():
        resumes, remedy = strategy in ("zero2", "zero3"), "the one of zero2 and zero3 that wrote it"
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
    """Convert an optimizer state keyed by parameter names to one keyed by numbers, which run through the groups."""
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
