"""Infer how far a published model reads; where nothing tells, ask instead of guessing.

The original trains with positions divided by ceil(context / the base's context) and writes that into no configuration
(of the adapters) or into some (of the models), and never `max_position_embeddings`.
"""

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlora.errors import ConfigError
from longlora.released.published import read_json
from longlora.released.table import find_released

logger = logging.getLogger("longlora")

_IN_NAME = re.compile(r"(?<![a-z0-9])(\d+)k(?![a-z0-9])")
_LARGEST = 10**7  # tokenizers without a limit say more


@dataclass(frozen=True, kw_only=True)
class Context:
    """How far a model reads, and how that is known."""

    length: int
    """In tokens."""

    factor: float
    """By which positions are divided."""

    known_from: str


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
    scaled = _linear_factor(folder)
    in_config = ("the configuration's rope_scaling", round(scaled * base_context) if scaled else None)
    sources = (
        ("--context", asked),
        ("the list of released models", _listed(name)),
        in_config,
        ("its name", _named(name)),
        ("its tokenizer's model_max_length", _tokenized(folder, base_context)),
    )
    known_from, length = next(((source, found) for source, found in sources if found), ("", None))
    if length is None:
        raise ConfigError(
            f"nothing tells how many tokens {name} reads: neither its configuration nor its name; say --context"
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
    if not path.is_file():
        return None
    values: dict[str, Any] = read_json(path)
    scaling = values.get("rope_scaling") or values.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "linear":
        raise ConfigError(f"{path} says positions of the type {kind}; what the authors published is linear")
    return float(scaling["factor"])


def _listed(name: str) -> int | None:
    model = find_released(name)
    return model.context_length if model else None


def _named(name: str) -> int | None:
    numbers = {int(number) for number in _IN_NAME.findall(name.rstrip("/").rpartition("/")[2].lower())}
    if len(numbers) != 1:
        return None
    (number,) = numbers
    return number * 1024 if number & (number - 1) == 0 else None


def _tokenized(folder: Path, base_context: int) -> int | None:
    path = folder / "tokenizer_config.json"
    length = read_json(path).get("model_max_length") if path.is_file() else None
    return length if isinstance(length, int) and base_context < length < _LARGEST else None
