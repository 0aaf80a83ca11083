"""What a directory with a model or an adapter holds."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlora.errors import CheckpointError
from longlora.tiny import TINY_MODEL, tiny_model_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
EXTENSION_FILE = "longlora.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What `longlora.json` says beside an adapter: the model it belongs to and the positions it was trained with."""

    base_model: str  # directory or hub name of the model that was extended
    base_context: int  # tokens that model reads by itself
    context_length: int  # tokens it reads with the adapter
    rope_parameters: dict[str, Any]  # transformers' own, that go with the adapter
    max_position_embeddings: int | None = None  # tokens; where not `context_length`: dynamic NTK counts from it
    # Rows of the embedding where it was resized for new tokens. Who loads the adapter with PEFT alone resizes the base
    # to as many first (`resize_token_embeddings`).
    vocabulary_rows: int | None = None
    quantization: str | None = None  # of the base while the adapter was trained; nothing that is saved is packed


def is_adapter(directory: Path) -> bool:
    """Tell an adapter's directory from a model's."""
    return (directory / ADAPTER_CONFIG).is_file()


def check_adapter(directory: Path) -> None:
    """Make sure that a directory is an adapter's.

    Raises:
        CheckpointError: it is not.
    """
    if not is_adapter(directory):
        raise CheckpointError(f"{directory} holds no adapter: {ADAPTER_CONFIG} is missing")


def model_source(name_or_path: str) -> str:
    """Turn what a user writes for a model into what transformers loads.

    Raises:
        CheckpointError: it looks like a path, and there is no model there.
    """
    if name_or_path == TINY_MODEL:
        return str(tiny_model_directory())
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists() and not is_adapter(path):
            raise CheckpointError(f"{path} holds no model: it has neither config.json nor adapter_config.json")
        return str(path)
    if path.exists():
        raise CheckpointError(f"{path} is a file; name the directory of a model")
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise CheckpointError(f"there is no model directory {name_or_path}")
    return name_or_path


def write_extension(directory: Path, extension: Extension) -> None:
    """Write `longlora.json`."""
    (directory / EXTENSION_FILE).write_text(json.dumps(asdict(extension), indent=2) + "\n", encoding="utf-8")


def read_extension(directory: Path) -> Extension | None:
    """Read `longlora.json`; None if the adapter was not made by longlora.

    Raises:
        CheckpointError: the file is there and cannot be used.
    """
    path = directory / EXTENSION_FILE
    if not path.exists():
        return None
    try:
        return Extension(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: Path) -> None:
    """Write a tokenizer so that transformers 4 reads it as well as transformers 5.

    transformers 5 names its general class, and the list of special tokens beyond BOS and the like, otherwise than 4:
    with its names 4 fails. It reads the names of 4 as its own. Both find the tokens themselves in `tokenizer.json`.
    """
    tokenizer.save_pretrained(directory)
    path = directory / _TOKENIZER_CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
