"""Neither modules nor folders import in a circle, not even inside a function or for types alone."""

import graphlib
from collections import defaultdict

import grimp

GRAPH = grimp.build_graph("longlora")


def folder_of(module: str) -> str:
    """Return the package that contains a module; a package itself counts as a module of its own."""
    return module if GRAPH.find_children(module) else module.rpartition(".")[0]


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return a circle of imports; empty if there is none."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_modules_form_no_circle() -> None:
    assert circle({module: set(GRAPH.find_modules_directly_imported_by(module)) for module in GRAPH.modules}) == []


def test_folders_form_no_circle() -> None:
    imports: dict[str, set[str]] = defaultdict(set)
    for module in GRAPH.modules - {"longlora"}:  # it names what lives below, and imports it when asked
        folders = {folder_of(imported) for imported in GRAPH.find_modules_directly_imported_by(module)}
        imports[folder_of(module)] |= folders - {folder_of(module), "longlora"}
    assert circle(imports) == []


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []
