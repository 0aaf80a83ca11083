"""Find the configuration that a model's name stands for: a folder, a fact that ships with longlora, or the hub."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from longlora.errors import CheckpointError, ConfigError
from longlora.planner.architecture import Architecture, parse_architecture
from longlora.tiny import TINY_MODEL, tiny_model_directory

FACTS = Path(__file__).parent.parent / "architectures"


def find_architecture(name_or_path: str) -> Architecture:
    """Read the shape of a model by what a recipe calls it; nothing but a configuration is ever read.

    Known hub names need neither network nor permission (gated models); others are fetched with `huggingface_hub`.

    Raises:
        CheckpointError: there is no configuration in the folder, or none to be had from the hub.
        ConfigError: its shapes are not known here.
    """
    if name_or_path == TINY_MODEL:
        return parse_architecture(_read(tiny_model_directory() / "config.json"), TINY_MODEL)
    directory = Path(name_or_path).expanduser()
    if directory.is_dir():
        return parse_architecture(_read(directory / "config.json"), name_or_path)
    if values := published_config(name_or_path):
        return parse_architecture(values, name_or_path)
    if directory.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise CheckpointError(f"there is no model directory {name_or_path}")
    return parse_architecture(_fetch(name_or_path), name_or_path)


def published_config(hub_name: str) -> dict[str, Any] | None:
    """The shapes in a hub model's config.json, for the names that longlora knows; None for others."""
    fact = known_names().get(hub_name.lower())
    return None if fact is None else _read(FACTS / f"{fact}.json")


@cache
def known_names() -> dict[str, str]:
    """Hub names, in small letters, with the fact file that each stands for."""
    return {name.lower(): fact for name, fact in _read(FACTS / "names.json").items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, found {type(values).__name__}")
    return values


def _fetch(name: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return _read(Path(hf_hub_download(name, "config.json")))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"cannot get the configuration of {name!r}, neither from a directory of that name nor from the hub: "
            f"{first_line}"
        ) from error
