"""Every option is declared once, and every list of values is written once."""

import ast
import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import typer
from typer.models import ArgumentInfo, OptionInfo

from longlora.cli.main import app

SOURCE = Path(__file__).parents[2] / "src"
MANY_MEANINGS = {
    "--base": "where the weights of `import` came from, and what a model is compared with",
    "--beyond": "an evaluation allows longer lengths, the suite adds one",
    "--context": "of a model, or of training rows; `import` needs it only if nothing else states it",
    "--data": "the suite has texts of its own",
    "--dtype": "of loaded or of merged weights, with other meanings of `auto`",
    "--engine": "for PDFs or for serving",
    "--length": "of windows, or what the measured model reads beside an evaluator",
    "--lengths": "of texts, prompts or tasks, with a default for each",
    "--max-new-tokens": "the default is the chat's or the task's",
    "--max-targets": "scored at each length, scored once, or chosen among",
    "--out": "what is written",
    "--processes": "for reading files, or of a training run",
    "--seed": "`make-qa` sends it to a server",
    "--short": "a distance in tokens, or a file of short conversations",
    "--strategy": "a plan and a run have other defaults",
    "--temperature": "of a chat, or of calls",
    "--tokenizer": "required, or instead of an estimate",
    "MODEL": "a path or hub name, or also the short name of a published architecture",
    "OUTPUT": "a merged model, or an imported adapter or model",
    "PATHS": "`compare` takes finished evaluations, `report` also training runs",
}


def declarations(application: typer.Typer) -> dict[str, dict[str | None, set[int]]]:
    """Return for each option and argument its help texts, and for each text which objects declare it."""
    found: dict[str, dict[str | None, set[int]]] = defaultdict(lambda: defaultdict(set))
    for callback in callbacks(typer.main.get_command(application)):
        for parameter in inspect.signature(callback, eval_str=True).parameters.values():
            for declared in get_args(parameter.annotation):
                if isinstance(declared, OptionInfo | ArgumentInfo):
                    is_option = isinstance(declared, OptionInfo)
                    name = f"--{parameter.name.replace('_', '-')}" if is_option else parameter.name.upper()
                    found[name][declared.help].add(id(declared))
    return found


def callbacks(command: Any) -> Iterator[Callable[..., Any]]:
    """Yield the functions of all commands."""
    for inner in getattr(command, "commands", {}).values():
        yield from callbacks(inner)
    if command.callback is not None:
        yield command.callback.__wrapped__


def declared_twice(application: typer.Typer) -> list[str]:
    """Return the options and arguments of which two declarations have the same help text."""
    return [
        name for name, texts in declarations(application).items() if any(len(objects) > 1 for objects in texts.values())
    ]


def literals(source: str) -> Iterator[tuple[Any, ...]]:
    """Yield the values of each `Literal` of several plain values."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
            values = node.slice.elts if isinstance(node.slice, ast.Tuple) else []
            if values and all(isinstance(value, ast.Constant) for value in values):
                yield tuple(sorted(value.value for value in values))


def test_an_option_is_declared_once() -> None:
    assert len(declarations(app)) > 80
    assert declared_twice(app) == []


def test_an_option_has_one_meaning_or_a_reason_for_more() -> None:
    several = {name for name, texts in declarations(app).items() if len(texts) > 1}
    assert several == MANY_MEANINGS.keys()


def test_a_second_declaration_would_be_noticed() -> None:
    application = typer.Typer()

    @application.command()
    def one(seed: Annotated[int, typer.Option(help="Random seed.")] = 0) -> None: ...

    @application.command()
    def two(seed: Annotated[int | None, typer.Option(help="Random seed.")] = None) -> None: ...

    assert declared_twice(application) == ["--seed"]


def test_values_are_listed_once() -> None:
    counts = Counter(values for path in SOURCE.rglob("*.py") for values in literals(path.read_text(encoding="utf-8")))
    assert len(counts) > 20
    assert [values for values, count in counts.items() if count > 1] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('Kind = Literal["b", "a"]', [("a", "b")]),
        ('def act(kind: Literal["a", "b"] | None) -> None: ...', [("a", "b")]),
        ('Kind = Literal["auto", Other]', []),
        ('Kind = Literal["a"]', []),
    ],
)
def test_which_values_are_compared(source: str, found: list[tuple[str, ...]]) -> None:
    assert list(literals(source)) == found
