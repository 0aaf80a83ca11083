"""Published files of weights: read without running what a pickle may hold, and held against the base."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from longlora.errors import CheckpointError, first_line
from longlora.models.shards import check_no_pointer
from longlora.models.skeleton import Skeleton

# What torch does not make out of a pickle, by its full name.
_REFUSED = re.compile(r"\bGLOBAL ([\w.]+)")
_PEFT_PREFIX = "base_model.model."
_OLDER_OUTPUT = "embed_out."  # GPT-NeoX before transformers 5
_TRANSIENT = ("rotary_emb.inv_freq",)  # buffers that older versions of transformers saved


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a `.bin` (tensors only) or a `.safetensors`; on the CPU, from the disk as far as the file allows.

    Raises:
        CheckpointError: it is damaged, or holds something else than a table of tensors.
    """
    check_no_pointer(file)
    try:
        weights = load_file(file) if file.suffix == ".safetensors" else _unpickle(file)
    except Exception as error:  # safetensors, pickle and torch each have exceptions of their own for a bad file
        raise CheckpointError(f"{file} cannot be read: {_reason(error)}") from error
    if not isinstance(weights, Mapping) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise CheckpointError(f"{file} holds something else than a table of weights")
    return {name: weight for name, weight in weights.items() if not name.endswith(_TRANSIENT)}


def alone(weight: Tensor) -> Tensor:
    """A weight that shares no memory with others, as safetensors wants them."""
    is_whole = weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes
    return weight if is_whole else weight.clone(memory_format=torch.contiguous_format)


def plain_name(name: str, skeleton: Skeleton) -> str:
    """Strip what PEFT, DeepSpeed and older versions put into the name of a weight."""
    name = name.removeprefix("module.").removeprefix(_PEFT_PREFIX).replace(".modules_to_save.default.", ".")
    if name.startswith(_OLDER_OUTPUT) and name not in skeleton.shapes:
        return skeleton.output_embedding
    return name


def check_shape(name: str, found: Tensor, skeleton: Skeleton, base: str) -> None:
    """Hold a weight against the base's of the same name.

    Raises:
        CheckpointError: the base has none of that name, or of another shape.
    """
    if name not in skeleton.shapes:
        raise CheckpointError(
            f"the published weights hold {name}, which {base} does not have: they belong to another base; say --base"
        )
    if tuple(found.shape) != skeleton.shapes[name]:
        raise CheckpointError(
            f"{name} has shape {tuple(found.shape)} in the published weights and {skeleton.shapes[name]} in {base}: "
            "they belong to another base; say --base"
        )


def _unpickle(file: Path) -> object:
    with file.open("rb") as opened:
        is_zip = opened.read(2) == b"PK"  # what torch writes since 1.6, which alone can stay on the disk
    return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)


def _reason(error: Exception) -> str:
    """What is wrong with a file; torch's own message advises to run what a pickle holds."""
    if found := _REFUSED.search(str(error)):
        return (
            f"beside tensors it holds {found[1]}, and reading that could run any program; get the weights as "
            "safetensors, or from a source you trust"
        )
    if isinstance(error, pickle.UnpicklingError | LookupError):
        return "it is no file of weights, or damaged; download it again"
    return f"{first_line(error)}; download it again"
