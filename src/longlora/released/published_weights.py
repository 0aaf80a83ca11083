"""Read published weight files without executing pickled code, and compare their names and shapes with the base."""

import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from longlora.errors import CheckpointError, first_line
from longlora.models.shards import check_no_pointer
from longlora.models.skeleton import Skeleton

Shapes = Mapping[str, tuple[int, ...]]

_REFUSED = re.compile(r"\bGLOBAL ([\w.]+)")  # the full name of what torch refuses to unpickle
_OLDER_OUTPUT = "embed_out."  # GPT-NeoX before transformers 5
_TRANSIENT = "rotary_emb.inv_freq"  # a buffer saved by older versions of transformers


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a `.bin` (tensors only) or `.safetensors` file to the CPU, memory-mapped if its format allows.

    Raises:
        CheckpointError: it is damaged, or is not a table of tensors.
    """
    check_no_pointer(file)
    try:
        if file.suffix == ".safetensors":
            weights = load_file(file)
        else:
            with file.open("rb") as opened:
                is_zip = opened.read(2) == b"PK"  # the format since torch 1.6, the only one that can be memory-mapped
            weights = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # safetensors, pickle and torch each raise their own exceptions for a bad file
        raise CheckpointError(f"{file} cannot be read: {_reason(error)}") from error
    if not isinstance(weights, Mapping) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise CheckpointError(f"{file} is not a table of weights")
    return {name: weight for name, weight in weights.items() if not name.endswith(_TRANSIENT)}


def _reason(error: Exception) -> str:
    """Describe the problem with a file; torch's own message suggests executing the pickle."""
    if found := _REFUSED.search(str(error)):
        return (
            f"besides tensors it contains {found[1]}, and reading that could execute arbitrary code; get the weights "
            "as safetensors, or from a source you trust"
        )
    if isinstance(error, pickle.UnpicklingError | LookupError):
        return "it is not a weights file, or is damaged; download it again"
    return f"{first_line(error)}; download it again"


def alone(weight: Tensor) -> Tensor:
    """Return a weight that shares no memory with others, as safetensors requires."""
    is_whole = weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes
    return weight if is_whole else weight.clone(memory_format=torch.contiguous_format)


def plain_name(name: str, skeleton: Skeleton) -> str:
    """Remove what PEFT, DeepSpeed and older versions of transformers add to a weight's name."""
    name = name.removeprefix("module.").removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
    if name.startswith(_OLDER_OUTPUT) and name not in skeleton.shapes:
        return skeleton.output_embedding
    return name


def check_shapes(found: Mapping[str, Tensor], wanted: Shapes, *, what: str, base: str) -> None:
    """Check names and shapes of weights against those of the base.

    Raises:
        CheckpointError: the base has no weight of this name, or one of another shape.
    """
    for name, weight in found.items():
        if name not in wanted:
            raise CheckpointError(
                f"{name} was published, but is not among the {what} of {base}: they belong to another base; give --base"
            )
        if tuple(weight.shape) != wanted[name]:
            raise CheckpointError(
                f"{name} has shape {tuple(weight.shape)} in the published weights and {wanted[name]} in {base}: they "
                "belong to another base; give --base"
            )


def check_complete(found: Collection[str], wanted: Shapes, *, what: str, folder: Path, hint: str = "") -> None:
    """Check that no weight is missing.

    Raises:
        CheckpointError: a weight is missing.
    """
    if missing := sorted(wanted.keys() - set(found)):
        raise CheckpointError(
            f"{folder} is incomplete: {len(missing)} of {len(wanted)} {what} are missing, such as {missing[0]}{hint}"
        )
