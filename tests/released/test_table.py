"""The list of released models, the page that shows it, and the recipes that make them anew."""

import re

import pytest
from tests.conftest import REPOSITORY

from longlora.config import load_recipe
from longlora.recipes import find_recipe, recipe_names
from longlora.released import RELEASED_MODELS, ReleasedModel
from longlora.released.released_models import OWNER, find_released

KINDS = {"adapter": "LoRA+", "model": "full model"}


def row(model: ReleasedModel) -> str:
    """A line of the page's table."""
    asked = " --base BASE" if model.base is None and model.kind == "adapter" else ""
    asked += "" if model.context_length else " --context TOKENS"
    command = f"longlora import {OWNER}/{model.name} {model.name.lower()}{asked}"
    context = f"{model.context_length:,}" if model.context_length else "not stated"
    recipe = f"`{model.recipe}`" if model.recipe else ""
    return f"| {model.name} | {KINDS[model.kind]} | {model.base or 'not stated'} | {context} | {recipe} | `{command}` |"


def test_the_page_lists_every_model_with_its_command() -> None:
    page = (REPOSITORY / "docs" / "released.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| (Llama-2|LongAlpaca)-", line)]
    assert rows == [row(model) for model in RELEASED_MODELS]


def test_every_recipe_with_a_released_twin_is_in_the_list() -> None:
    twins = {name: find_recipe(name).read_text(encoding="utf-8") for name in recipe_names()}
    named = {name: re.search(rf"released as\s+#?\s*{OWNER}/(\S+)", text) for name, text in twins.items()}
    expected = {name: match[1] for name, match in named.items() if match}
    assert len(expected) == 21
    assert {model.recipe: model.name for model in RELEASED_MODELS if model.recipe} == expected


@pytest.mark.parametrize("model", [model for model in RELEASED_MODELS if model.recipe], ids=lambda model: model.name)
def test_recipe_and_list_agree(model: ReleasedModel) -> None:
    assert model.recipe is not None
    recipe = load_recipe(model.recipe, [])
    assert recipe.context_length == model.context_length
    assert model.base in (recipe.model_name_or_path, None)
    if not model.instructed:  # of those, adapters were published merged
        assert (recipe.tuning == "full") is (model.kind == "model")


def test_names_are_found_in_any_form() -> None:
    for name in ("Yukang/LongAlpaca-7B", "longalpaca-7b", "down/loads/LongAlpaca-7B/"):
        found = find_released(name)
        assert found is not None and found.name == "LongAlpaca-7B"
    assert find_released("Yukang/LongAlpaca-12k") is None
