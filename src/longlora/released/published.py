"""Find out what a published folder holds, by its files and the names of the weights in them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longlora.errors import CheckpointError
from longlora.models.shards import local_folder

ADAPTER_CONFIG = "adapter_config.json"
TRAINABLE = "trainable_params.bin"
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_PATTERNS = ["*.json", "*.bin", "*.safetensors", "tokenizer*", "*.model"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A folder, what kind of thing it holds, and in which files."""

    folder: Path
    kind: Literal["adapter", "consolidated", "model"]
    """`adapter`: LoRA weights in a file of their own. `consolidated`: everything, LoRA weights not yet merged, in
    `pytorch_model.bin`, as DeepSpeed's `zero_to_fp32.py` leaves it. `model`: an ordinary model."""

    files: tuple[Path, ...]
    """With the LoRA weights, or with the model's."""

    trainable: Path | None
    """With embeddings and norms, where they stand alone."""


def find_folder(source: str) -> Path:
    """Folder of that name, or else the repository's, downloaded if need be.

    Raises:
        CheckpointError: there is neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointError(f"there is no directory {source}, and it is no name on the hub")
    return local_folder(source, patterns=_PATTERNS)


def read_folder(folder: Path) -> Published:
    """Tell what was published in a folder.

    Raises:
        CheckpointError: it holds neither LoRA weights nor a model, or only a part.
    """
    adapter_files = tuple(folder / name for name in _ADAPTER_FILES if (folder / name).is_file())[:1]
    trainable = folder / TRAINABLE if (folder / TRAINABLE).is_file() else None
    if (folder / ADAPTER_CONFIG).is_file():
        if adapter_files:
            return Published(folder=folder, kind="adapter", files=adapter_files, trainable=trainable)
        if files := _model_files(folder):
            return Published(folder=folder, kind="consolidated", files=files, trainable=trainable)
        raise CheckpointError(
            f"{folder} has {ADAPTER_CONFIG} and no weights: adapter_model.bin, or pytorch_model.bin, is missing"
        )
    if adapter_files or trainable:
        raise CheckpointError(
            f"{folder} has LoRA weights and no {ADAPTER_CONFIG}, which says how they are scaled; the original's "
            "scripts write it when a run is saved"
        )
    if files := _model_files(folder):
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} has weights and no config.json")
        return Published(folder=folder, kind="model", files=files, trainable=None)
    raise CheckpointError(f"{folder} holds neither LoRA weights (adapter_model.bin) nor a model's (pytorch_model*.bin)")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} holds no JSON object")
    return values


def _model_files(folder: Path) -> tuple[Path, ...]:
    for name in _INDEX_FILES:
        if (folder / name).is_file():
            listed = read_json(folder / name).get("weight_map")
            files = sorted({folder / file for file in listed.values()}) if isinstance(listed, dict) else []
            missing = [file.name for file in files if not file.is_file()]
            if missing or not files:
                raise CheckpointError(
                    f"{folder} is incomplete: {', '.join(missing) or 'every file'} of {name} is missing"
                )
            return tuple(files)
    return tuple(folder / name for name in _SINGLE_FILES if (folder / name).is_file())[:1]
