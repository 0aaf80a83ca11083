"""Write the positions of a saved model in transformers 4's keys too, and warn of readers that misread them."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from longlora.errors import ConfigError
from longlora.models.positions import rotary_parameters
from longlora.rope.extend import extended_parameters
from longlora.rope.other_readers import TRANSFORMERS_4, misread, older_keys
from longlora.support.files import write_atomically

logger = logging.getLogger("longlora")

_MISREAD = "%s would misread the positions of this model: %s"


def write_older_keys(directory: Path, *, required: bool = False) -> None:
    """Add transformers 4's keys for a saved model's positions, and warn of readers that misread the positions.

    Verifies that transformers 5 still reads the same positions from the file with both sets of keys.

    Args:
        directory: contains `config.json`, as saved by transformers 5.
        required: raise for positions that the older keys cannot express, instead of omitting the keys with a warning.

    Raises:
        ConfigError: the keys are required, but cannot express the model's positions.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        positions = rotary_parameters(config)
    except (ConfigError, ValueError):
        return  # no positions to misread, or a model that only its own remote code can read
    model_type = config.get_text_config().model_type
    missed = misread(positions, model_type=model_type)
    if TRANSFORMERS_4 not in missed:
        try:
            _add_older_keys(directory / "config.json", positions, model_type)
        except ConfigError as error:
            missed[TRANSFORMERS_4] = str(error)
    if required and TRANSFORMERS_4 in missed:
        raise ConfigError(f"{_MISREAD % (TRANSFORMERS_4, missed[TRANSFORMERS_4])}; merge without --v4-rope")
    for reader, what in missed.items():
        logger.warning(_MISREAD, reader, what)


def _add_older_keys(path: Path, positions: Mapping[str, Any], model_type: str) -> None:
    before = path.read_text(encoding="utf-8")
    values = json.loads(before)
    values.get("text_config", values).update(older_keys(positions, model_type=model_type))
    write_atomically(path, json.dumps(values, indent=2, sort_keys=True) + "\n")
    wanted = dict(extended_parameters(positions))
    try:
        read = rotary_parameters(AutoConfig.from_pretrained(path.parent))
    except Exception:  # each model type validates its configuration with exceptions of its own
        read = {}
    read = dict(extended_parameters(read))
    # transformers 5 keeps the older name of the type; Phi-3's three keys lack the factor, which the contexts imply.
    for name in ("type", *(["factor"] if model_type == "phi3" else [])):
        wanted.pop(name, None)
        read.pop(name, None)
    if read != wanted:
        write_atomically(path, before)
        raise ConfigError(
            f"with transformers 4's keys added, {model_type} would be read with positions {read} instead of {wanted}"
        )
