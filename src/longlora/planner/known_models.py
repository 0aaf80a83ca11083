"""The models whose configuration is known without the hub: `architectures/`, one file for each family."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from longlora.support.files import read_json

FOLDER = Path(__file__).parent.parent / "architectures"


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """What decides the shape of one published model."""

    name: str  # such as "qwen3-8b"
    hub_names: tuple[str, ...]  # all that share the shape, the base model first
    config: dict[str, Any]  # under transformers' names, as in its config.json
    parameters: int | None  # the published total, which the tests compare with the configuration; None: not known
    base_context: int | None  # tokens of its pretraining, where its config.json says more
    source: str  # of the whole family
    unverified: str | None  # what of it was not read in a source


@cache
def known_models() -> tuple[KnownModel, ...]:
    """All of them, in the order of the files."""
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
    """Look one up by its name here or on the hub, in any case."""
    return _by_name().get(name.lower())


@cache
def _by_name() -> dict[str, KnownModel]:
    return {name.lower(): model for model in known_models() for name in (model.name, *model.hub_names)}
