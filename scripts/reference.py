"""Generate the site's reference pages from the code: every recipe key, command, option and public name.

    python scripts/reference.py FOLDER

`docs/conf.py` runs this before each build of the site, so the pages always match the code.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

import longlora
from longlora.cli.main import app
from longlora.config import Recipe
from longlora.planner.architecture import find_architecture
from longlora.planner.known_models import known_models


def main() -> int:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write_pages(parser.parse_args().folder)
    return 0


def write_pages(folder: Path) -> None:
    """Write `recipe.md`, `commands.md`, `python.md` and `known-models.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"recipe": recipe_page(), "commands": commands_page(), "python": python_page()}
    pages["known-models"] = known_models_page()
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def recipe_page() -> str:
    """Return the page of recipe keys, with type, default and description of each."""
    schema = Recipe.model_json_schema()
    sections: list[tuple[str, dict[str, Any]]] = []
    lines = [
        "# Recipe keys",
        "",
        "Any key can be overridden on the command line: `longlora train recipe.yaml KEY=VALUE`.",
        "",
    ]
    for name, value in schema["properties"].items():
        if "$ref" in value:
            sections.append((name, schema["$defs"][value["$ref"].rsplit("/")[-1]]))
        else:
            lines += _key(name, value, required=name in schema["required"])
    for section, keys in sections:
        lines += [f"## {section}", "", keys.get("description", ""), ""]
        for name, value in keys["properties"].items():
            lines += _key(f"{section}.{name}", value, required=name in keys.get("required", ()))
    return "\n".join(lines)


def _key(name: str, value: dict[str, Any], *, required: bool) -> list[str]:
    default = "required" if required else f"default `{_yaml(value['default'])}`"
    return [f"`{name}`", f": {_type(value)}, {default}. {' '.join(value.get('description', '').split())}", ""]


def _yaml(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _type(value: dict[str, Any]) -> str:
    if "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value["enum"])
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(part) for part in value["anyOf"] if part.get("type") != "null"))
    if value.get("type") == "array":
        return f"list of {_type(value['items'])}" if value.get("items") else "list"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {value[key]}" for key, word in bounds.items() if key in value]
    return " ".join([value.get("type", "value"), *limits])


def commands_page() -> str:
    """Return the page of commands, with their arguments and options."""
    lines = ["# Commands", ""]
    for path, command in _commands("longlora", typer.main.get_command(app)):
        lines += [f"## {path}", "", command.help or "", ""]
        for parameter in command.params:
            help_text = getattr(parameter, "help", None)
            if help_text is None or getattr(parameter, "hidden", False):
                continue
            is_option = parameter.param_type_name == "option"
            names = (
                ", ".join([*parameter.opts, *parameter.secondary_opts])
                if is_option
                else (parameter.metavar or parameter.name.upper())
            )
            shown = (
                ""
                if parameter.default in (None, ..., "", False) or callable(parameter.default)
                else f" Default: `{parameter.default}`."
            )
            lines += [f"`{names}`", f": {' '.join(help_text.split())}{shown}", ""]
    return "\n".join(lines)


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(command, TyperGroup):
        if command.params and path != "longlora":
            yield path, command
        for name, child in command.commands.items():
            yield from _commands(f"{path} {name}", child)
    else:
        yield path, command


def python_page() -> str:
    """Return the page of public names, for autodoc."""
    lines = [
        "# Python",
        "",
        "All of these are attributes of `longlora`. Importing it registers the attention `s2` with transformers.",
        "",
    ]
    for name in longlora.__all__:
        value = getattr(longlora, name)
        kind = (
            "autofunction"
            if not isinstance(value, type)
            else "autoexception"
            if issubclass(value, Exception)
            else "autoclass"
        )
        lines += [f"## {name}", "", "```{eval-rst}", f".. {kind}:: {value.__module__}.{value.__qualname__}", "```", ""]
    return "\n".join(lines)


def known_models_page() -> str:
    """Return the page of models that `longlora plan` knows without the hub."""
    lines = [
        "# Models known offline",
        "",
        "`longlora plan`, `init` and `train --miniature` know these shapes without a network, by any of the names.",
        "The tests compare parameter counts with published totals. Values that were not found in a source are marked.",
        "",
        "| short name | parameters | context | hub names | not verified |",
        "|---|---:|---:|---|---|",
    ]
    for model in known_models():
        shape = find_architecture(model.name)
        names = ", ".join(f"`{name}`" for name in model.hub_names)
        lines.append(
            f"| `{model.name}` | {shape.num_parameters:,} | {shape.max_position_embeddings:,} | {names} "
            f"| {model.unverified or ''} |"
        )
    lines += ["", "## Sources", ""]
    for source, group in groupby(known_models(), key=lambda model: model.source):
        lines += [f"{', '.join(model.name for model in group)}", f": {source}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
