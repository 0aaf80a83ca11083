"""A model's safetensors files: find them, read them weight by weight, and write them file by file."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from longlora.errors import CheckpointError, first_line
from longlora.support.files import read_json
from longlora.support.wording import short_repr

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
_POINTER = b"version https://git-lfs"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """The file, shape and type of a stored weight."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None if it is not a floating-point type."""


def local_folder(name: str, *, patterns: Sequence[str] | None = None) -> Path:
    """Return the local folder of this name, or else download the hub repository, or its files that match a pattern.

    Raises:
        CheckpointError: neither exists.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=None if patterns is None else list(patterns)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{name} is not a directory and cannot be downloaded from the hub: {reason}") from error


def model_folder(name: str) -> Path | None:
    """Return the folder with a model's safetensors files, downloaded if necessary; None if it has none."""
    folder = local_folder(name, patterns=["*.json", "*.safetensors"])
    return folder if (folder / INDEX_FILE).exists() or (folder / SINGLE_FILE).exists() else None


def stored_weights(folder: Path) -> dict[str, StoredWeight]:
    """Read the headers of a model's safetensors files.

    Raises:
        CheckpointError: a file is missing or truncated, or does not contain what the index says.
    """
    index = folder / INDEX_FILE
    if not index.exists():
        return _read_header(folder / SINGLE_FILE)
    listed = read_index(index)
    found: dict[str, StoredWeight] = {}
    for file in sorted(set(listed.values())):
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder} is incomplete: {file} is missing; download it again")
        found |= _read_header(folder / file)
    if absent := sorted(listed.keys() - found.keys()):
        raise CheckpointError(f"{folder} is incomplete: {absent[0]} is in none of its files; download it again")
    return found


def read_index(index: Path) -> dict[str, str]:
    """Read which file of a folder contains each weight.

    Raises:
        CheckpointError: the index is damaged, or refers to a file outside the folder.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise CheckpointError(
            f"{index.parent} is incomplete: every file of {index.name} is missing, since its weight_map lists none; "
            "download it again"
        )
    if outside := next((file for file in listed.values() if Path(file).name != file or "\0" in file), None):
        raise CheckpointError(
            f"{index} refers to {short_repr(outside)}, which is not a file of its folder, and is not read"
        )
    return listed


def check_indexes(folder: Path) -> None:
    """Check that the indexes of a model's folder, if any, refer only to files of that folder.

    Raises:
        CheckpointError: one does not, or is damaged.
    """
    for name in (INDEX_FILE, PICKLED_INDEX_FILE):
        if (folder / name).is_file():
            read_index(folder / name)


def main_dtype(weights: dict[str, StoredWeight]) -> torch.dtype:
    """Return the floating-point type of most of a model's parameters."""
    numbers: Counter[torch.dtype] = Counter()
    for weight in weights.values():
        if weight.dtype is not None:
            numbers[weight.dtype] += math.prod(weight.shape)
    return numbers.most_common(1)[0][0] if numbers else torch.float32


def check_no_pointer(file: Path) -> None:
    """Check that a file is not a Git LFS pointer, which a clone without LFS leaves in place of a large file.

    Raises:
        CheckpointError: it is a pointer.
    """
    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(
                f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in {file.parent}"
            )


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file; weights are read only on demand.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        check_no_pointer(file)
        with safe_open(file, framework="pt") as reader:
            yield reader
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download or copy it again") from error


class ShardWriter:
    """Writes a model's files one by one, then their index unless there is only `model.safetensors`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._weight_map: dict[str, str] = {}
        self._num_bytes = 0

    def write(self, file: str, weights: dict[str, torch.Tensor]) -> None:
        """Write one file.

        Raises:
            CheckpointError: writing fails, as on a full disk.
        """
        try:
            save_file(weights, self.directory / file, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be written ({error}); is the disk full?") from error
        self._weight_map |= dict.fromkeys(weights, file)
        self._num_bytes += sum(weight.nbytes for weight in weights.values())

    def finish(self) -> None:
        """Write the index, unless all weights are in a single file with the standard name."""
        if set(self._weight_map.values()) == {SINGLE_FILE}:
            return
        index = {"metadata": {"total_size": self._num_bytes}, "weight_map": dict(sorted(self._weight_map.items()))}
        (self.directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _read_header(file: Path) -> dict[str, StoredWeight]:
    with opened(file) as reader:
        slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 - not a mapping
        return {
            name: StoredWeight(file=file.name, shape=tuple(part.get_shape()), dtype=_DTYPES.get(part.get_dtype()))
            for name, part in slices.items()
        }
