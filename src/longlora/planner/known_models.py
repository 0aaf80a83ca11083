"""Models whose configuration is bundled with longlora, in `architectures/`, one file per family."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from longlora.support.files import read_json

FOLDER = Path(__file__).parent.parent / "architectures"


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """The bundled configuration of a published model."""

    name: str  # such as "qwen3-8b"
    hub_names: tuple[str, ...]  # all hub models of this shape, the base model first
    config: dict[str, Any]  # keys as in the model's config.json
    parameters: int | None  # the published total, which the tests compare with the configuration; None if unknown
    base_context: int | None  # context length in pretraining, if the model's config.json has a longer one
    source: str  # of the whole family
    unverified: str | None  # what is not confirmed by a source


@cache
def known_models() -> tuple[KnownModel, ...]:
    """Return all known models, in the order of the files."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        family = read_json(path)
        for name, model in family["models"].items():
            found.append(
                KnownModel(
                    name=name,
                    hub_names=tuple(model["names"]),
                    config={**family["shared"], **model["config"]},
                    parameters=model.get("parameters"),
                    base_context=model.get("base_context"),
                    source=family["source"],
                    unverified=model.get("unverified"),
                )
            )
    return tuple(found)


def find_known_model(name: str) -> KnownModel | None:
    """Look up a model by its short name or hub name, ignoring case."""
    return _by_name().get(name.lower())


@cache
def _by_name() -> dict[str, KnownModel]:
    return {name.lower(): model for model in known_models() for name in (model.name, *model.hub_names)}
