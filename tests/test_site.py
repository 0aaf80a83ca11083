"""The documentation site builds without a warning, and has every key, option and public name."""

import html
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

import longlora
from longlora.cli.main import app
from longlora.config import Recipe

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "docs", str(out)]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return out


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def keys(schema: dict[str, Any], part: dict[str, Any], before: str = "") -> Iterator[str]:
    for name, value in part["properties"].items():
        if "$ref" in value:
            yield from keys(schema, schema["$defs"][value["$ref"].rsplit("/")[-1]], f"{before}{name}.")
        else:
            yield before + name


def options(command: Any) -> Iterator[str]:
    if isinstance(command, TyperGroup):
        for child in command.commands.values():
            yield from options(child)
    yield from (name for parameter in command.params for name in parameter.opts if name.startswith("--"))


@pytest.mark.slow  # half a minute of sphinx
def test_the_reference_is_whole(site: Path) -> None:
    page = (site / "reference" / "recipe.html").read_text(encoding="utf-8")
    described = {re.sub(r"<[^>]+>", "", term) for term in re.findall(r"<dt>(.*?)</dt>", page, flags=re.DOTALL)}
    schema = Recipe.model_json_schema()
    assert set(keys(schema, schema)) == described
    commands = text_of(site / "reference" / "commands.html")
    hidden = {"--help", "--version", "--install-completion", "--show-completion"}
    assert {name for name in options(typer.main.get_command(app)) if name not in commands} <= hidden
    python = text_of(site / "reference" / "python.html")
    assert [name for name in longlora.__all__ if f".{name}" not in python] == []


def test_messages_that_are_explained_exist() -> None:
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "src").rglob("*.py")]
    explained = [
        part
        for row in page.splitlines()
        if row.startswith("| `")
        for part in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]
    assert len(explained) > 5
    of_others = {"CUDA out of memory", "No space left on device"}
    unknown = [
        message
        for message in explained
        if message not in of_others
        and not any(all(part in source for part in message.split("…")) for source in sources)
    ]
    assert unknown == []
