"""Read files of weights, pickles included, without running what a pickle may hold."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from longlora.errors import CheckpointError

_TRANSIENT = ("rotary_emb.inv_freq",)  # buffers that older versions of transformers saved


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a `.bin` (tensors only) or a `.safetensors`; on the CPU, from the disk as far as the file allows.

    Raises:
        CheckpointError: it is damaged, or holds something else than a table of tensors.
    """
    try:
        weights = load_file(file) if file.suffix == ".safetensors" else _unpickle(file)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is damaged, or holds more than tensors, which could run any program when it is read: "
            f"{_first_line(error)}"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read ({_first_line(error)}); download it again") from error
    if not isinstance(weights, Mapping) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise CheckpointError(f"{file} holds something else than a table of weights")
    return {name: weight for name, weight in weights.items() if not name.endswith(_TRANSIENT)}


def alone(weight: Tensor) -> Tensor:
    """A weight that shares no memory with others, as safetensors wants them."""
    is_whole = weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes
    return weight if is_whole else weight.clone(memory_format=torch.contiguous_format)


def _unpickle(file: Path) -> object:
    with file.open("rb") as opened:
        is_zip = opened.read(2) == b"PK"  # what torch writes since 1.6, which alone can stay on the disk
    return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
