"""The files that images and packages are built from exist."""

import re
import tomllib
from pathlib import Path

import yaml

import longlora

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_dockerfile_copies_what_is_there_and_starts_the_command() -> None:
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, flags=re.MULTILINE) for name in line.split()]
    assert {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "src"} == set(copied)
    assert [name for name in copied if not (REPOSITORY / name).exists()] == []
    kept = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split()
    assert {f"!{name}" for name in copied} <= set(kept)
    (extras,) = re.findall(r'^ARG EXTRAS="(.+)"$', text, flags=re.MULTILINE)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (started,) = re.findall(r'^ENTRYPOINT \["(.+)"\]$', text, flags=re.MULTILINE)
    assert started in project["scripts"]


def test_the_pictures_that_pages_show_are_there() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    shown = [(page, name) for page in pages for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text("utf-8"))]
    assert len(shown) >= 5
    assert [(page.name, name) for page, name in shown if not (page.parent / name).exists()] == []


def test_what_a_package_index_shows_has_no_link_into_the_repository() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\]\(docs/", text)
    for change in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    assert re.findall(r"\]\((?!https://)[^)]*\)", text) == []


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == longlora.__version__
    assert citation["license"] == "Apache-2.0"
