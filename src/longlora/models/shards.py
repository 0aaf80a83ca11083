"""The safetensors files of a model: found, read a weight at a time, and written a file at a time."""

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

from longlora.errors import CheckpointError
from longlora.support.files import read_json
from longlora.support.wording import short_repr

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
_POINTER = b"version https://git-lfs"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """Where a weight lies, and what it is."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None where it is no floating-point number."""


def local_folder(name: str, *, patterns: Sequence[str] | None = None) -> Path:
    """Folder of that name, or else a copy of the repository of the hub, or of the files in it that match a pattern.

    Raises:
        CheckpointError: there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=None if patterns is None else list(patterns)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{name} is no directory and cannot be downloaded from the hub: {reason}") from error


def model_folder(name: str) -> Path | None:
    """Folder with a model's safetensors, downloaded if need be; None where it has none."""
    folder = local_folder(name, patterns=["*.json", "*.safetensors"])
    return folder if (folder / INDEX_FILE).exists() or (folder / SINGLE_FILE).exists() else None


def stored_weights(folder: Path) -> dict[str, StoredWeight]:
    """Read the headers of a model's safetensors files.

    Raises:
        CheckpointError: a file is missing, cut short or does not hold what the index says.
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
    """Read in which file of a folder each weight lies.

    Raises:
        CheckpointError: it is damaged, or names a file outside of the folder.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise CheckpointError(
            f"{index.parent} is incomplete: every file of {index.name} is missing, for its weight_map lists none; "
            "download it again"
        )
    if outside := next((file for file in listed.values() if Path(file).name != file or "\0" in file), None):
        raise CheckpointError(
            f"{index} names {short_repr(outside)}, which is no file of its folder; it is not followed"
        )
    return listed


def check_indexes(folder: Path) -> None:
    """See that the indexes of a model's folder, if there are any, name files of that folder alone.

    Raises:
        CheckpointError: one does not, or is damaged.
    """
    for name in (INDEX_FILE, PICKLED_INDEX_FILE):
        if (folder / name).is_file():
            read_index(folder / name)


def main_dtype(weights: dict[str, StoredWeight]) -> torch.dtype:
    """The floating-point type that most of the numbers of a model have."""
    numbers: Counter[torch.dtype] = Counter()
    for weight in weights.values():
        if weight.dtype is not None:
            numbers[weight.dtype] += math.prod(weight.shape)
    return numbers.most_common(1)[0][0] if numbers else torch.float32


def check_no_pointer(file: Path) -> None:
    """See that a file is no pointer of git-LFS, which a clone without it leaves in the place of large files.

    Raises:
        CheckpointError: it is one.
    """
    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(
                f"{file} is a pointer of git-LFS and not the file itself: run `git lfs pull` in {file.parent}"
            )


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file; its weights stay on the disk until they are asked for.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        check_no_pointer(file)
        with safe_open(file, framework="pt") as reader:
            yield reader
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); download or copy it again") from error


class ShardWriter:
    """Writes the files of a model one by one, and their index at the end if the model it follows has one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._weight_map: dict[str, str] = {}
        self._num_bytes = 0

    def write(self, file: str, weights: dict[str, torch.Tensor]) -> None:
        """Write one file.

        Raises:
            CheckpointError: the disk takes no more.
        """
        try:
            save_file(weights, self.directory / file, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be written ({error}); is the disk full?") from error
        self._weight_map |= dict.fromkeys(weights, file)
        self._num_bytes += sum(weight.nbytes for weight in weights.values())

    def finish(self) -> None:
        """Write the index, unless all is in one file of the usual name."""
        if set(self._weight_map.values()) == {SINGLE_FILE}:
            return
        index = {"metadata": {"total_size": self._num_bytes}, "weight_map": dict(sorted(self._weight_map.items()))}
        (self.directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _read_header(file: Path) -> dict[str, StoredWeight]:
    with opened(file) as reader:
        slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 - no mapping
        return {
            name: StoredWeight(file=file.name, shape=tuple(part.get_shape()), dtype=_DTYPES.get(part.get_dtype()))
            for name, part in slices.items()
        }
