"""The bundled recipes: the YAML files in this folder.

Recipes for models that the paper's authors released have those models' names (`Yukang/Llama-2-7b-longlora-8k-ft` and so
on) in lower case.
"""

import difflib
from pathlib import Path

from longlora.errors import ConfigError

_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Return the names of all recipes, sorted by model, context and kind of training."""
    return sorted((path.stem for path in _FOLDER.glob("*.yaml")), key=_order)


def is_recipe(name: str) -> bool:
    """Return whether a name can only be a recipe, and not a model."""
    path = Path(name)
    return path.suffix in (".yaml", ".yml") or path.is_file() or name in recipe_names()


def find_recipe(name_or_path: str | Path) -> Path:
    """Return the file of a recipe: the user's own, or else the bundled one of that name.

    Raises:
        ConfigError: neither exists.
    """
    path, shipped = Path(name_or_path), _FOLDER / f"{name_or_path}.yaml"
    if path.is_file() or not (shipped.parent == _FOLDER and shipped.is_file()):
        if not path.exists() and not path.suffix:
            near = difflib.get_close_matches(str(name_or_path), recipe_names(), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "`longlora recipes` lists those that ship with longlora"
            raise ConfigError(f"there is no recipe {str(name_or_path)!r}, neither as a file nor bundled; {hint}")
        return path
    return shipped


def contained_recipe(directory: Path) -> str:
    """Return the end of a message about a directory in a recipe's place: where in it a recipe is; empty if none."""
    inside = directory / "recipe.yaml"
    return f"; it contains a recipe: {inside}" if inside.is_file() else ""


def describe_recipe(name: str) -> str:
    """Return the one-line description of a bundled recipe, from its first line."""
    first = find_recipe(name).read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").partition(": ")[2]


def _order(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort numbers in names by value: 7b before 13b, 8k before 16k."""
    parts: list[tuple[int, int | str]] = []
    for part in name.split("-"):
        digits = part.rstrip("bk")
        parts.append((0, int(digits)) if digits.isdigit() else (1, part))
    return parts, name
