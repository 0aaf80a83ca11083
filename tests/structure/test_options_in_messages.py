"""Messages name options that exist: of a command that can reach the module, or of another program."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grimp
import pytest
import typer

from longlora.cli.main import app

SOURCE = Path(__file__).parents[2] / "src"
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]+")
OTHER_PROGRAMS = {
    "longlora.corpus.pdf.pdfium": {"--force-ocr"},  # ocrmypdf
    "longlora.corpus.qa.answering_model": {"--max-model-len"},  # vLLM
    # the next commands to try, in full
    "longlora.demo.handout": {"--suite", "--data", "--document", "--context", "--gpu-type"},
    "longlora.inference.web": {"--body-text-color", "--border-color-primary", "--primary-500"},  # CSS
    "longlora.serving.server": {"--max-model-len", "--served-model-name"},  # vLLM
    "longlora.training.launch": {"--config_file", "--module"},  # accelerate
}


def options_by_module() -> dict[str, set[str]]:
    """Return the options of the commands that each module of `cli` declares."""
    found: dict[str, set[str]] = {}
    waiting: list[Any] = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        if command.callback is not None:
            options = {"--help"} | {
                option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
            }
            found.setdefault(command.callback.__wrapped__.__module__, set()).update(options)
    return found


def mentioned(module: str) -> Iterator[str]:
    """Yield the options that a module's strings mention, those of docstrings aside."""
    path = SOURCE.joinpath(*module.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from OPTION.findall(node.value)


def unknown(messages: dict[str, set[str]], known: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return for each module the options that no command reaching it has."""
    graph = grimp.build_graph("longlora")
    reached = {cli: graph.find_upstream_modules(cli) | {cli} for cli in known}
    wrong = {}
    for module, options in messages.items():
        offered = set().union(*(known[cli] for cli, modules in reached.items() if module in modules))
        wrong[module] = options - offered - OTHER_PROGRAMS.get(module, set())
    return {module: options for module, options in wrong.items() if options}


@pytest.fixture(scope="module")
def messages() -> dict[str, set[str]]:
    return {module: set(mentioned(module)) for module in grimp.build_graph("longlora").modules}


def test_messages_name_options_that_their_commands_have(messages: dict[str, set[str]]) -> None:
    assert sum(map(len, messages.values())) > 60
    assert unknown(messages, options_by_module()) == {}


def test_an_option_of_another_command_would_be_noticed(messages: dict[str, set[str]]) -> None:
    known = options_by_module()
    assert "--push-to-hub" in messages["longlora.merge.merging"]
    changed = {**messages, "longlora.merge.merging": {"--push-to-hub", "--output", "--price-in"}}
    assert unknown(changed, known) == {"longlora.merge.merging": {"--output", "--price-in"}}
    assert OTHER_PROGRAMS.keys() <= messages.keys()
    assert all(options <= messages[module] for module, options in OTHER_PROGRAMS.items())
