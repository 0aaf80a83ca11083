"""The recipes that ship with longlora: all can be used, and are found by name."""

import json
import re
import sys
from pathlib import Path

import pytest

from longlora.cli import main as cli
from longlora.config import load_recipe
from longlora.errors import ConfigError
from longlora.recipes import describe_recipe, find_recipe, recipe_names

# What the paper's authors released, by base model, context in thousands and training (paper, tables 3, 4, 5 and 15, and
# the list in the original's README).
RELEASED = {
    *(f"llama-2-7b-longlora-{k}k-ft" for k in (8, 16, 32, 100)),
    *(f"llama-2-13b-longlora-{k}k-ft" for k in (8, 16, 32)),
    *(f"llama-2-7b-longlora-{k}k" for k in (8, 16, 32)),
    *(f"llama-2-13b-longlora-{k}k" for k in (8, 16, 32, 64)),
    "llama-2-70b-longlora-32k",
    "llama-2-70b-chat-longlora-32k",
}
FINETUNED = {
    "longalpaca-7b": ("meta-llama/Llama-2-7b-hf", 16384, "lora+", 2e-5, 5),
    "longalpaca-13b": ("meta-llama/Llama-2-13b-hf", 32768, "full", 2e-5, 5),
    "longalpaca-70b": ("meta-llama/Llama-2-70b-hf", 32768, "lora+", 1e-5, 5),
    "llama-2-13b-chat-longlora-32k-sft": ("meta-llama/Llama-2-13b-chat-hf", 32768, "lora+", 2e-5, 3),
    "llama-2-70b-chat-longlora-32k-sft": ("meta-llama/Llama-2-70b-chat-hf", 32768, "lora+", 1e-5, 3),
}
TOKENS = {"8k": 8192, "16k": 16384, "32k": 32768, "64k": 65536, "100k": 100_000}


def test_every_model_of_the_paper_has_its_recipe():
    assert set(recipe_names()) >= RELEASED | set(FINETUNED)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_can_be_used_and_says_what_it_is(name):
    recipe = load_recipe(name)
    assert recipe.output_dir == f"runs/{name}"
    text = find_recipe(name).read_text(encoding="utf-8")
    assert describe_recipe(name)
    for heading in ("# Launch  ", "# Needs   ", "# Gives   "):
        assert heading in text
    assert name in text.partition("# Needs")[0]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_fits_the_hardware_that_it_names(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    recipe = load_recipe(name)
    launch = re.search(r"--strategy (\w+) --processes (\d+)", find_recipe(name).read_text(encoding="utf-8"))
    named = (launch[1], int(launch[2])) if launch else ("single", 1)
    assert (recipe.hardware.strategy_on(recipe.hardware.gpus), recipe.hardware.gpus) == named
    monkeypatch.setattr(sys, "argv", ["longlora", "plan", name, "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] and plan["keeps_margin"]
    assert (plan["num_gpus"], plan["memory_bytes"]) == (recipe.hardware.gpus, recipe.hardware.memory_gib * 2**30)
    assert plan["strategy"] == named[0]


@pytest.mark.parametrize("name", sorted(RELEASED))
def test_a_released_model_is_made_as_the_paper_says(name):
    recipe = load_recipe(name)
    size, context = re.fullmatch(r"llama-2-(\w+?b)(?:-chat)?-longlora-(\w+k)(?:-ft)?", name).groups()
    assert recipe.model_name_or_path.lower() == f"meta-llama/{name.partition('-longlora')[0]}-hf"
    assert recipe.context_length == TOKENS[context]
    assert recipe.group_size == recipe.context_length // 4
    assert recipe.tuning == ("full" if name.endswith("-ft") else "lora+")
    assert recipe.learning_rate == (1e-5 if size == "70b" else 2e-5)
    assert (recipe.lora.r, recipe.lora.lora_alpha, recipe.trainable) == (
        8,
        16,
        ("embed", "norm") if recipe.tuning == "lora+" else (),
    )
    assert 8 * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps == 64
    assert (recipe.max_steps, recipe.warmup_steps, recipe.weight_decay) == (1000, 20, 0)
    assert (recipe.adam_beta1, recipe.adam_beta2) == (0.9, 0.95)


@pytest.mark.parametrize("name", FINETUNED)
def test_a_released_model_is_fine_tuned_as_the_authors_say(name):
    recipe = load_recipe(name)
    base, context, tuning, rate, epochs = FINETUNED[name]
    assert (recipe.model_name_or_path, recipe.context_length, recipe.tuning) == (base, context, tuning)
    assert (recipe.data.kind, recipe.data.packing, recipe.group_size) == ("sft", False, context // 4)
    assert (recipe.learning_rate, recipe.num_train_epochs) == (rate, epochs)
    assert 8 * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps == 64


def test_numbers_in_names_are_sorted_by_value():
    names = [name for name in recipe_names() if name.startswith("llama-2-7b-longlora-")]
    assert names.index("llama-2-7b-longlora-8k") < names.index("llama-2-7b-longlora-16k")
    assert names.index("llama-2-7b-longlora-32k") < names.index("llama-2-7b-longlora-100k-ft")


def test_a_file_of_ones_own_goes_before_a_shipped_one(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama-2-7b-longlora-8k").write_text("", encoding="utf-8")
    assert find_recipe("llama-2-7b-longlora-8k") == Path("llama-2-7b-longlora-8k")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llama-2-7b-longlora-8", "did you mean 'llama-2-7b-longlora-8k'"),
        ("x", "`longlora recipes` lists those"),
        ("../recipes/llama-2-7b-longlora-8k", "there is no recipe"),
    ],
)
def test_a_name_that_is_none(name, message):
    with pytest.raises(ConfigError, match=message):
        find_recipe(name)
