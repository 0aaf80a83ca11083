"""Find out what a published folder holds, and how far the model in it reads.

The original trains with positions divided by ceil(context / the base's context) and writes that into no configuration
(of the adapters) or into some (of the models), and never `max_position_embeddings`. Where nothing tells, the user is
asked.
"""

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longlora.errors import CheckpointError, ConfigError
from longlora.models.checkpoint import ADAPTER_CONFIG
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
    """A folder, what kind of thing it holds, and in which files."""

    folder: Path
    kind: Literal["adapter", "consolidated", "model"]
    """`adapter`: LoRA weights in a file of their own. `consolidated`: everything, LoRA weights not yet merged, in
    `pytorch_model.bin`, as DeepSpeed's `zero_to_fp32.py` leaves it. `model`: an ordinary model."""
    files: tuple[Path, ...]  # with the LoRA weights, or with the model's
    trainable: Path | None = None  # with embeddings and norms, where they stand alone


@dataclass(frozen=True, kw_only=True)
class Context:
    """How far a model reads, and how that is known."""

    length: int  # tokens
    factor: float  # by which positions are divided
    known_from: str


def find_folder(source: str) -> Path:
    """Folder of that name, or else the repository's, downloaded if need be.

    Raises:
        CheckpointError: there is neither.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise CheckpointError(f"there is no directory {source}, and it is not a hub name")
    return local_folder(source, patterns=_PATTERNS)


def read_folder(folder: Path) -> Published:
    """Tell what was published in a folder.

    Raises:
        CheckpointError: it holds neither LoRA weights nor a model, or only a part.
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
            f"{folder} has {ADAPTER_CONFIG} and no weights: adapter_model.bin, or pytorch_model.bin, is missing"
        )
    if low_rank or trainable:
        raise CheckpointError(
            f"{folder} has LoRA weights and no {ADAPTER_CONFIG}, which says how they are scaled; the original's "
            "scripts write it when a run is saved"
        )
    files = _listed_files(folder) or first("model.safetensors", "pytorch_model.bin")
    if not files:
        raise CheckpointError(
            f"{folder} holds neither LoRA weights (adapter_model.bin) nor a model's (pytorch_model*.bin)"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has weights and no config.json")
    return Published(folder=folder, kind="model", files=files)


def _listed_files(folder: Path) -> tuple[Path, ...]:
    """The files of a model that an index lists."""
    for name in (INDEX_FILE, PICKLED_INDEX_FILE):
        if (folder / name).is_file():
            files = sorted({folder / file for file in read_index(folder / name).values()})
            if missing := [file.name for file in files if not file.is_file()]:
                raise CheckpointError(f"{folder} is incomplete: {', '.join(missing)} of {name} is missing")
            return tuple(files)
    return ()


def infer_context(folder: Path, name: str, *, asked: int | None, base_context: int) -> Context:
    """Find the context of what lies in a folder.

    In this order: what the user says, the list of released models, a linear scaling in the configuration, the name
    (`-32k`: 32 × 1,024), what the tokenizer was saved with. A name with a number that is no power of two is not
    understood: 100k were 100,000 tokens. A scaling in the configuration decides against all but the user, and where it
    disagrees a warning says so.

    Args:
        folder: with the published files.
        name: as the user wrote it.
        asked: context in tokens, from the user.
        base_context: tokens that the base reads.

    Raises:
        ConfigError: nothing tells, or what tells is not longer than the base's context or scaled in another way.
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
            "rope_scaling in the configuration says factor %g, and %s (%s tokens) means %g: %s decides",
            *(scaled, known_from, f"{length:,}", factor, known_from if asked else "the configuration"),
        )
        if not asked:
            (known_from, length), factor = in_config, scaled
    if not length or length <= base_context:
        raise ConfigError(
            f"a context of {length:,} tokens ({known_from}) is not longer than the {base_context:,} of the base; say "
            "with --base which model it was made of"
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
        raise ConfigError(f"{path} says positions of the type {kind}; what the authors published is linear")
    return float(scaling["factor"])


def _named(name: str) -> int | None:
    numbers = {int(number) for number in _CONTEXT_IN_NAME.findall(name.rstrip("/").rpartition("/")[2].lower())}
    number = numbers.pop() if len(numbers) == 1 else 0
    return number * 1024 if number.bit_count() == 1 else None


def _tokenized(folder: Path, base_context: int) -> int | None:
    path = folder / "tokenizer_config.json"
    length = read_json(path).get("model_max_length") if path.is_file() else None
    return length if isinstance(length, int) and base_context < length < _LARGEST else None
