"""The documentation site: `make docs`."""

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE.parent / "scripts")]

project = "longlora"
copyright = "the authors of longlora"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["log.md", "decisions"]  # for those who work on longlora
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
autodoc_typehints = "none"
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = "longlora"


def setup(app: Any) -> None:
    """Make the reference from the code, and let docstrings and links be what the site takes."""
    app.connect("builder-inited", lambda _: _write_reference())
    app.connect("source-read", _unlink_repository)
    app.connect("autodoc-process-docstring", _double_backticks)


def _write_reference() -> None:
    from reference import write_pages

    write_pages(HERE / "reference")


def _unlink_repository(_: Any, document: str, source: list[str]) -> None:
    """Name files of the repository that are no pages instead of linking them: the site stands by itself."""
    source[0] = re.sub(r"\[([^\]]*)\]\(((?:(?:\.\./)+|log\.md|decisions/)[^)]*)\)", r"\1 (`\2`)", source[0])
    source[0] = source[0].replace("(`../../", "(`").replace("(`../", "(`")


def _double_backticks(_: Any, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Docstrings are written in Markdown's way of code, and autodoc reads reStructuredText."""
    lines[:] = [re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line) for line in lines]
