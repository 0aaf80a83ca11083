"""Which strategy can resume from which checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import torch

from longlora.errors import CheckpointError
from longlora.support.choices import Strategy

# As transformers' Trainer names them.
_PLAIN_OPTIMIZER = "optimizer.pt"
_FSDP_OPTIMIZER = "optimizer.bin"
_FSDP_WEIGHTS = "pytorch_model_fsdp.bin"
_DEEPSPEED_TAG = "latest"


def resumable(checkpoint: Path, strategy: Strategy) -> Path:
    """Give a checkpoint that a strategy can resume from: itself, or what FSDP2 wrote in the form of the unsharded ones.

    The converted one stands in the run's folder as `converted/checkpoint-N`, with the weights, the optimizer's state
    and the schedule; states of random generators are taken up where the number of processes is the same.

    Raises:
        CheckpointError: it was written by a strategy from which this one cannot resume.
    """
    writer = _writer(checkpoint)
    reader = {"fsdp2": "fsdp2", "zero2": "deepspeed", "zero3": "deepspeed"}.get(strategy, "unsharded")
    if writer == reader:
        return checkpoint
    if (writer, reader) == ("fsdp2", "unsharded"):
        return _unsharded(checkpoint)
    remedies = {
        "unsharded": "single or ddp",
        "deepspeed": "the same of zero2 and zero3",
        "fsdp2": "fsdp2, ddp or single",
    }
    raise CheckpointError(
        f"{checkpoint} cannot be resumed with --strategy {strategy}: resume with {remedies[writer]}, or choose another "
        "output_dir to start again"
    )


def _writer(checkpoint: Path) -> str:
    if (checkpoint / _DEEPSPEED_TAG).exists():
        return "deepspeed"
    return "fsdp2" if (checkpoint / _FSDP_OPTIMIZER).exists() else "unsharded"


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
