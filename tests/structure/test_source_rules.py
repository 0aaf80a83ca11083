"""Source rules that no linter checks: short files and functions, everything documented, annotated and named alike."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted((REPOSITORY / "src").rglob("*.py"))
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 80

Function = ast.FunctionDef | ast.AsyncFunctionDef


def violations(source: str) -> Iterator[str]:
    """Yield every rule that a module's text breaks, with the line number."""
    num_lines = len(source.splitlines())
    if num_lines > MOST_LINES_OF_A_FILE:
        yield f"1: {num_lines} lines in one file, {MOST_LINES_OF_A_FILE} at most"
    module = ast.parse(source)
    if not ast.get_docstring(module):
        yield "1: the module has no docstring"
    yield from _undocumented(module)
    for node in ast.walk(module):
        if isinstance(node, Function):
            num_lines = node.end_lineno - node.lineno + 1
            if num_lines > MOST_LINES_OF_A_FUNCTION:
                yield f"{node.lineno}: {node.name} has {num_lines} lines, {MOST_LINES_OF_A_FUNCTION} at most"
            if missing := list(_unannotated(node)):
                yield f"{node.lineno}: {node.name} has no annotation for {', '.join(missing)}"
            if any(_is_bool_progress(argument) for argument in (*node.args.args, *node.args.kwonlyargs)):
                yield f"{node.lineno}: {node.name} takes `progress`; whether a bar is shown is called `show_progress`"


def _undocumented(parent: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Check public classes, functions and methods, but nothing nested in functions."""
    for node in parent.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"{node.lineno}: {node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                yield from _undocumented(node)


def _unannotated(function: Function) -> Iterator[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    for argument in named:
        if argument and argument.annotation is None and argument.arg not in ("self", "cls"):
            yield argument.arg
    if function.returns is None:
        yield "the result"


def _is_bool_progress(argument: ast.arg) -> bool:
    return argument.arg == "progress" and isinstance(argument.annotation, ast.Name) and argument.annotation.id == "bool"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_source_keeps_the_rules(path: Path) -> None:
    assert list(violations(path.read_text(encoding="utf-8"))) == []


def test_no_two_classes_share_a_name() -> None:
    homes = defaultdict[str, list[str]](list)
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(path.relative_to(REPOSITORY).as_posix())
    assert len(homes) > 100
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


@pytest.mark.parametrize(
    ("source", "violation"),
    [
        ("x = 1\n", "1: the module has no docstring"),
        ('"""M."""\nclass Public:\n    x = 1\n', "2: Public has no docstring"),
        ('"""M."""\nclass Public:\n    """P."""\n    def act(self) -> None: ...\n', "4: act has no docstring"),
        ('"""M."""\ndef _act(self, x: int, *y, z=1) -> None: ...\n', "2: _act has no annotation for z, y"),
        ('"""M."""\ndef _act():\n    pass\n', "2: _act has no annotation for the result"),
        ('"""M."""\ndef _act() -> None:\n' + "    pass\n" * 80, "2: _act has 81 lines, 80 at most"),
        (
            '"""M."""\ndef _act(*, progress: bool = True) -> None: ...\n',
            "2: _act takes `progress`; whether a bar is shown is called `show_progress`",
        ),
        ('"""M."""\n' + "x = 1\n" * 400, "1: 401 lines in one file, 400 at most"),
    ],
)
def test_a_broken_rule_would_be_noticed(source: str, violation: str) -> None:
    assert list(violations(source)) == [violation]
