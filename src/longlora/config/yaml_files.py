"""Recipes as YAML files, with `key=value` overrides."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from longlora.config.explain import explain
from longlora.config.recipe import Recipe
from longlora.errors import ConfigError
from longlora.recipes import find_recipe


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, a file or the name of one that ships with longlora, and apply `key=value` overrides.

    An override reads as `attention.dense_finish=0.2`; values are YAML.

    Raises:
        ConfigError: no such recipe, not a YAML mapping, an unknown key, a wrong type, an impossible combination.
    """
    path = find_recipe(path)
    if path.is_dir():
        raise ConfigError(_about_directory(path))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, found {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    return parse_recipe(values, where=str(path))


def parse_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """Check a mapping and turn it into a recipe.

    Raises:
        ConfigError: an unknown key, a wrong type, an impossible combination; every problem is named.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {explain(problem, Recipe)}" for problem in error.errors())
        raise ConfigError(f"{where} cannot be used:\n{problems}") from None


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe with every value spelled out, as YAML that `load_recipe` reads back to the same recipe."""
    unused = {"max_steps"} if recipe.num_train_epochs is not None else None
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude=unused), sort_keys=False, allow_unicode=True)


def _about_directory(path: Path) -> str:
    what = f"{path} is a directory, and a recipe is a YAML file or one of the names that `longlora recipes` lists"
    if (path / "recipe.yaml").is_file():
        return f"{what}; it holds one: {path / 'recipe.yaml'}"
    if (path / "config.json").is_file():
        return f"{what}; a model goes into a recipe: write RECIPE model_name_or_path={path} with one of those"
    return what


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"an override must read key=value, found {override!r}")
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {section} is a value, not a section")
    try:
        values[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not valid YAML") from error
