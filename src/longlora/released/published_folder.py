"""Determine what a published folder contains, and the model's context.

The original divides positions by ceil(context / base context), but records this in the configuration of only some
models and no adapter, and never updates `max_position_embeddings`. If nothing states the context, the user must.
"""

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longlora.errors import CheckpointError, ConfigError
from longlora.models.directories import ADAPTER_CONFIG
from longlora.models.shards import INDEX_FILE, PICKLED_INDEX_FILE, local_folder, read_index
from longlora.released.released_models import find_released
from longlora.support.files import read_json

logger = logging.getLogger("longlora")

TRAINABLE = "trainable_params.bin"
_PATTERNS = ["*.json", "*.bin", "*.safetensors", "tokenizer*", "*.model"]
_CONTEXT_IN_NAME = re.compile(r"(?<![a-z0-9])(\d+)k(?![a-z0-9])")
_LARGEST = 10**7  # tokenizers without a limit say more


@dataclass(frozen=True, kw_only=True)
class Published:
    """A folder, the kind of its contents, and the files."""

    folder: Path
    kind: Literal["adapter", "consolidated", "model"]
    """`adapter`: LoRA weights in a separate file. `consolidated`: everything, with unmerged LoRA weights, in
    `pytorch_model.bin`, as written by DeepSpeed's `zero_to_fp32.py`. `model`: an ordinary model."""
    files: tuple[Path, ...]  # with the weights of LoRA or of the model
    trainable: Path | None = None  # with embeddings and norms, if they are in a separate file


@dataclass(frozen=True, kw_only=True)
class Context:
    """A model's context and its source."""

    length: int  # tokens
    factor: float  # divisor of positions
    known_from: str


def find_folder(source: str) -> Path:
    """Return the local folder of this name, or else that of the hub repository, downloaded if necessary.

    Raises:
        CheckpointError: neither exists.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointError(f"there is no directory {source}, and it is not a hub name")
    return local_folder(source, patterns=_PATTERNS)


def read_folder(folder: Path) -> Published:
    """Determine the kind of a published folder and its files.

    Raises:
        CheckpointError: it contains neither LoRA weights nor a model, or only a part of one.
    """

    def first(*names: str) -> tuple[Path, ...]:
        return tuple(folder / name for name in names if (folder / name).is_file())[:1]

    low_rank, trainable = first("adapter_model.safetensors", "adapter_model.bin"), next(iter(first(TRAINABLE)), None)
    if (folder / ADAPTER_CONFIG).is_file():
        if low_rank:
            return Published(folder=folder, kind="adapter", files=low_rank, trainable=trainable)
        if files := _listed_files(folder) or first("model.safetensors", "pytorch_model.bin"):
            return Published(folder=folder, kind="consolidated", files=files, trainable=trainable)
        raise CheckpointError(
            f"{folder} has {ADAPTER_CONFIG} but no weights: adapter_model.bin or pytorch_model.bin is missing"
        )
    if low_rank or trainable:
        raise CheckpointError(
            f"{folder} has LoRA weights but no {ADAPTER_CONFIG}, which states their scaling; the original's scripts "
            "write it when a run is saved"
        )
    files = _listed_files(folder) or first("model.safetensors", "pytorch_model.bin")
    if not files:
        raise CheckpointError(
            f"{folder} holds neither LoRA weights (adapter_model.bin) nor a model's (pytorch_model*.bin)"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has weights but no config.json")
    return Published(folder=folder, kind="model", files=files)


def _listed_files(folder: Path) -> tuple[Path, ...]:
    """Return the files listed in a model's index."""
    for name in (INDEX_FILE, PICKLED_INDEX_FILE):
        if (folder / name).is_file():
            files = sorted({folder / file for file in read_index(folder / name).values()})
            if missing := [file.name for file in files if not file.is_file()]:
                raise CheckpointError(f"{folder} is incomplete: {', '.join(missing)} of {name} is missing")
            return tuple(files)
    return ()


def infer_context(folder: Path, name: str, *, asked: int | None, base_context: int) -> Context:
    """Infer the context of a published model.

    Sources, in this order: the user, the list of released models, a linear scaling in the configuration, the name
    (`-32k`: 32 × 1,024), the tokenizer. A name whose number is not a power of two is ignored: 100k was 100,000 tokens.
    A scaling in the configuration overrides every source except the user, with a warning if they disagree.

    Args:
        folder: folder with the published files.
        name: name as the user wrote it.
        asked: context in tokens given by the user.
        base_context: context of the base in tokens.

    Raises:
        ConfigError: no source states the context, it is not longer than the base's, or positions are not scaled
            linearly.
    """
    scaled, known = _linear_factor(folder), find_released(name)
    in_config = ("the configuration's rope_scaling", round(scaled * base_context) if scaled else None)
    sources = (
        ("--context", asked),
        ("the list of released models", known.context_length if known else None),
        in_config,
        ("its name", _named(name)),
        ("its tokenizer's model_max_length", _tokenized(folder, base_context)),
    )
    known_from, length = next(((source, found) for source, found in sources if found), ("", None))
    if length is None:
        raise ConfigError(
            f"the context of {name} is unknown: neither its configuration nor its name states it; give --context"
        )
    factor = float(math.ceil(length / base_context))
    if scaled and scaled != factor:
        logger.warning(
            "rope_scaling in the configuration has factor %g, but %s (%s tokens) implies %g: %s decides",
            *(scaled, known_from, f"{length:,}", factor, known_from if asked else "the configuration"),
        )
        if not asked:
            (known_from, length), factor = in_config, scaled
    if not length or length <= base_context:
        raise ConfigError(
            f"a context of {length:,} tokens ({known_from}) is not longer than the {base_context:,} of the base; give "
            "the right base with --base"
        )
    return Context(length=length, factor=factor, known_from=known_from)


def _linear_factor(folder: Path) -> float | None:
    path = folder / "config.json"
    values = read_json(path) if path.is_file() else {}
    scaling = values.get("rope_scaling") or values.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "linear":
        raise ConfigError(f"{path} has positions of the type {kind}, but those of the published models are linear")
    return float(scaling["factor"])


def _named(name: str) -> int | None:
    numbers = {int(number) for number in _CONTEXT_IN_NAME.findall(name.rstrip("/").rpartition("/")[2].lower())}
    number = numbers.pop() if len(numbers) == 1 else 0
    return number * 1024 if number.bit_count() == 1 else None


def _tokenized(folder: Path, base_context: int) -> int | None:
    path = folder / "tokenizer_config.json"
    length = read_json(path).get("model_max_length") if path.is_file() else None
    return length if isinstance(length, int) and base_context < length < _LARGEST else None
