"""What README and docs show is so: commands and options exist, recipes are recipes, Python runs on the tiny model."""

import re
import shlex
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml
from typer.core import TyperCommand, TyperGroup

from longlora.cli import main as cli
from longlora.config import load_recipe, parse_recipe
from longlora.planner.known_models import known_models
from longlora.recipes import recipe_names

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(path.relative_to(REPOSITORY).as_posix() for path in sorted((REPOSITORY / "docs").glob("*.md")))]
SHELLS = ("sh", "bash")
UsageError: Any = typer.BadParameter.__base__  # click's, or that of the click that newer typer carries inside


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Find the fenced blocks of the pages."""
    found = []
    for page in PAGES:
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            found.append(Block(page, text[: match.start()].count("\n") + 2, match[1], match[2]))
    return [block for block in found if block.language in languages]


def commands(text: str) -> Iterator[list[str]]:
    """Split a block of shell into words: of `longlora …`, and of what starts it in other ways."""
    for line in text.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word not in ("…", "[key=value", "…]")]
        words = [*dropwhile(re.compile(r"[A-Z]\w*=").match, words)]  # variables of this command alone
        if "longlora.cli" in words:  # python -m, torchrun, accelerate launch
            yield words[words.index("longlora.cli") + 1 :]
        elif words[:1] == ["longlora"]:
            yield words[1:]


def parse(command: TyperCommand | TyperGroup, words: list[str], parent: Any = None) -> Any:
    """Let click take a command line apart without running anything."""
    context = command.make_context(command.name or "longlora", list(words), parent=parent)
    if isinstance(command, TyperGroup):
        _, chosen, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        return parse(chosen, rest, context)
    return context


@pytest.fixture
def without_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the models and texts of the examples be anywhere."""
    monkeypatch.setattr("longlora.models.directories.model_source", lambda name: name)
    monkeypatch.setattr("longlora.support.locate.locate", lambda name: [])


@pytest.mark.parametrize("block", blocks(*SHELLS), ids=lambda block: block.place)
def test_commands_and_options_exist(block: Block, without_places: None) -> None:
    whole = typer.main.get_command(cli.app)
    for words in commands(block.text):
        try:
            context = parse(whole, words)
        except UsageError as error:
            pytest.fail(f"{block.place}: longlora {shlex.join(words)}: {error.format_message()}")
        recipe = context.params.get("recipe") or context.params.get("target")  # of `plan`, which takes models as well
        if recipe in recipe_names():
            load_recipe(recipe, context.params["overrides"] or [])


def test_a_wrong_option_would_be_noticed(without_places: None) -> None:
    whole = typer.main.get_command(cli.app)
    with pytest.raises(UsageError, match="--output"):
        parse(whole, ["eval", "needle", "MODEL", "--output", "DIR"])
    with pytest.raises(UsageError, match="mrege"):
        parse(whole, ["mrege", "a", "b"])
    text = "longlora train a \\\n  b=1  # c\nls\ntorchrun -m longlora.cli train r\nA_B=1 C='2 3' longlora serve d\n"
    assert [*commands(text)] == [["train", "a", "b=1"], ["train", "r"], ["serve", "d"]]


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_recipes_are_recipes(block: Block) -> None:
    whole = {"model_name_or_path": "tiny", "output_dir": "runs/x", "context_length": 1024, "data": {"source": "x"}}
    values: dict[str, Any] = yaml.safe_load(block.text)
    parse_recipe(whole | values)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe that extends the tiny model in one step, and what it says."""
    folder = tmp_path_factory.mktemp("documentation")
    (folder / "books").mkdir()
    (folder / "books" / "one.txt").write_text("the sea was calm and a ship lay still upon it. " * 300)
    values = {
        "model_name_or_path": "tiny",
        "output_dir": str(folder / "runs" / "mine"),
        "context_length": 512,
        "data": {"source": str(folder / "books"), "cache_dir": str(folder / "cache")},
        "max_steps": 1,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 0,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder


def python_of(page: str) -> str:
    """Join a page's blocks of Python, with the tiny model in the place of others and short lengths for long ones."""
    text = "\n".join(block.text for block in blocks("python") if block.page == page)
    for shown, used in (
        ('"meta-llama/Llama-2-7b-hf"', "TINY"),
        ('"runs/mine/adapter"', "TINY"),
        ("lengths=[4096, 8192]", "lengths=[248], depths=[0.5], num_trials=1"),
        ("max_steps=100", "max_steps=1"),
    ):
        text = text.replace(shown, used)
    return text


@pytest.mark.parametrize("page", ["README.md", "docs/evaluation.md", "docs/use.md"])
def test_python_runs(page: str, extended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from longlora.tiny import tiny_model_directory

    monkeypatch.chdir(extended)
    names: dict[str, Any] = {"TINY": str(tiny_model_directory())}
    if page == "docs/use.md":  # goes on from a model and inputs that transformers' users have
        names["model"] = AutoModelForCausalLM.from_pretrained(names["TINY"])
        names["inputs"] = {"input_ids": torch.arange(3, 40)[None]}
    exec(compile(python_of(page), page, "exec"), names)
    if page == "README.md":
        assert (extended / "runs" / "mine" / "merged" / "config.json").exists()


def test_the_readme_counts_the_known_models() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"[the {len(known_models())} models it knows]" in text
