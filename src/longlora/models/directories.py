"""Model and adapter directories: recognizing them, `longlora.json`, and saved tokenizers."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlora.errors import CheckpointError, ConfigError
from longlora.support.files import read_json
from longlora.tiny import TINY_MODEL, tiny_model_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
EXTENSION_FILE = "longlora.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True, kw_only=True)
class Extension:
    """The contents of an adapter's `longlora.json`: its base model and the positions it was trained with."""

    base_model: str  # directory or hub name of the model that was extended
    base_context: int  # tokens that the base reads
    context_length: int  # tokens that it reads with the adapter
    rope_parameters: dict[str, Any]  # those of transformers, for the adapter
    max_position_embeddings: int | None = None  # tokens, if not `context_length`: dynamic NTK scales from it
    # Rows of the embedding, if it was resized for new tokens. To load the adapter with PEFT alone, resize the base to
    # this number first (`resize_token_embeddings`).
    vocabulary_rows: int | None = None
    quantization: str | None = None  # of the base during training; saved weights are not quantized


def is_adapter(directory: Path) -> bool:
    """Return whether a directory contains an adapter rather than a model."""
    return (directory / ADAPTER_CONFIG).is_file()


def check_adapter(directory: Path) -> None:
    """Check that a directory contains an adapter.

    Raises:
        CheckpointError: it does not.
    """
    if not is_adapter(directory):
        raise CheckpointError(f"{directory} holds no adapter: {ADAPTER_CONFIG} is missing")


def model_source(name_or_path: str) -> str:
    """Resolve a model as the user names it to a name or path that transformers can load.

    Raises:
        CheckpointError: it looks like a path, but contains no model.
    """
    if name_or_path == TINY_MODEL:
        return str(tiny_model_directory())
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists() and not is_adapter(path):
            raise CheckpointError(f"{path} holds no model: it has neither config.json nor adapter_config.json")
        return str(path)
    if path.exists():
        raise CheckpointError(f"{path} is a file; give a model's directory")
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise CheckpointError(f"there is no model directory {name_or_path}")
    return name_or_path


def training_source(name_or_path: str) -> str:
    """Resolve the name of a model to train, as `model_source` does.

    Raises:
        CheckpointError: it looks like a path, but contains no model.
        ConfigError: it is an adapter.
    """
    source = model_source(name_or_path)
    if is_adapter(Path(source)):
        raise ConfigError(
            f"model_name_or_path={name_or_path} is an adapter: merge it first (`longlora merge`), then train the "
            "merged model"
        )
    return source


def base_model_of(adapter: Path) -> str:
    """Return the name or path of an adapter's base model.

    Raises:
        CheckpointError: the adapter's files are damaged or name none.
    """
    if extension := read_extension(adapter):
        return extension.base_model
    name = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{adapter / ADAPTER_CONFIG} names no base model; set base_model_name_or_path there to the model that was "
            "trained"
        )
    return name


def write_extension(directory: Path, extension: Extension) -> None:
    """Write `longlora.json`."""
    (directory / EXTENSION_FILE).write_text(json.dumps(asdict(extension), indent=2) + "\n", encoding="utf-8")


def read_extension(directory: Path) -> Extension | None:
    """Read `longlora.json`; None if the adapter was not made by longlora.

    Raises:
        CheckpointError: the file exists but is invalid.
    """
    path = directory / EXTENSION_FILE
    if not path.exists():
        return None
    try:
        return Extension(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", directory: Path) -> None:
    """Save a tokenizer in a form that both transformers 4 and 5 can load.

    transformers 5 renamed the generic tokenizer class and the list of additional special tokens. Version 4 fails on the
    new names, while 5 accepts the old ones. Both read the tokens themselves from `tokenizer.json`.
    """
    tokenizer.save_pretrained(directory)
    path = directory / _TOKENIZER_CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
