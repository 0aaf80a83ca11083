"""Every name in `__all__` exists, and only the packages that public names come from pass names on."""

import ast
from pathlib import Path

import longlora

PACKAGE = Path(longlora.__file__).parent


def test_every_public_name_resolves() -> None:
    assert longlora.__all__
    assert [name for name in longlora.__all__ if not hasattr(longlora, name)] == []


def test_other_names_are_imported_from_the_file_that_defines_them() -> None:
    passing_on = set[str]()
    for path in PACKAGE.glob("*/**/__init__.py"):
        package = ".".join(("longlora", *path.parent.relative_to(PACKAGE).parts))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{package}."):
                passing_on.add(package)
    assert passing_on
    assert passing_on <= set(longlora._HOMES.values())
