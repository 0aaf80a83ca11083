"""File names are unique, and what CONTRIBUTING and docs/ say about the source tree is true."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "longlora"
SOURCES = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
MOST_TOP_LEVEL_MODULES = 4

_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"[\w./-]+(?:\.(?:py|md|yaml)|/)")


def paths_named(text: str) -> list[str]:
    """Return every path in backquotes: a folder with a trailing slash, or a file with its suffix."""
    return [code for code in _CODE.findall(text) if _PATH.fullmatch(code)]


def absent(text: str) -> list[str]:
    """Return the paths that are neither in the repository nor in the package."""
    roots = (REPOSITORY, PACKAGE)
    return [name for name in paths_named(text) if not any((root / name).exists() for root in roots)]


def test_no_two_source_files_have_the_same_name() -> None:
    names = Counter(path.name for path in SOURCES if path.name not in ("__init__.py", "__main__.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_few_modules_stand_beside_the_packages() -> None:
    top_level = [path.name for path in SOURCES if len(path.parts) == 1 and path.name != "__init__.py"]
    assert len(top_level) <= MOST_TOP_LEVEL_MODULES, top_level


@pytest.mark.parametrize("page", ["architecture.md", "paper.md"])
def test_every_file_of_the_page_is_there(page: str) -> None:
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    assert len(paths_named(text)) > 40
    assert absent(text) == []


def test_every_table_and_figure_of_the_paper_has_a_verdict() -> None:
    rows = [line.strip("| ").split(" | ") for line in section("docs/paper.md", "Tables and figures").splitlines()]
    verdicts = ("**holds here**", "**does not hold here**", "**cannot be tested at this size**")
    judged = {row[0]: row[-1] for row in rows if row[0].startswith(("table", "figure"))}
    assert all(any(verdict in cell for verdict in verdicts) for cell in judged.values())
    named = {int(number) for name in judged if "table" in name for number in re.findall(r"\d+", name)}
    assert named == set(range(1, 16))


def section(page: str, heading: str) -> str:
    """Return the text of a page's section, up to the next heading."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def test_the_map_names_every_package_and_nothing_that_is_not_there() -> None:
    text = section("CONTRIBUTING.md", "Map of the code")
    assert absent(text) == []
    packages = {f"src/longlora/{path.parts[0]}/" for path in SOURCES if len(path.parts) > 1}
    assert packages - set(paths_named(text)) == set()


def test_the_floors_of_contributing_are_those_of_the_import_contract() -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    layers = contracts["tool"]["importlinter"]["contracts"][0]["layers"]
    checked = [set(re.findall(r"\w+", layer)) for layer in layers]
    rows = [line for line in section("CONTRIBUTING.md", "Floors").splitlines() if line.startswith("| ")][1:]
    told = [set(re.findall(r"`(\w+)`", row.split("|")[2])) for row in rows]
    assert told == checked


@pytest.mark.parametrize("name", ["attention/nowhere.py", "src/nowhere/"])
def test_a_path_that_is_not_there_would_be_noticed(name: str) -> None:
    assert absent(f"see `{name}` and `attention/cuts.py`, and `attention.sink_tokens`") == [name]
