"""The result is saved before all that may fail, in the types of real runs, and the same command makes up for it."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.training.conftest import MakeRecipe

from longlora.config import Recipe
from longlora.data.conversations import Conversation
from longlora.errors import ConfigError
from longlora.models.chat_template import ensure_chat_template
from longlora.models.load import load_for_inference
from longlora.training import run_summary
from longlora.training.run import train
from longlora.training.run_summary import write_samples


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="longlora")


def left_by(recipe: Recipe) -> set[str]:
    return {path.name for path in Path(recipe.output_dir).iterdir()}


@pytest.mark.parametrize("tuning", ["lora+", "full"])
def test_fine_tuning_in_bfloat16_answers_and_saves(
    make_sft: MakeRecipe, tuning: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Trained weights are float32 beside others of bfloat16, which agree under autocast alone."""
    recipe = make_sft(tuning=tuning, dtype="bfloat16", max_steps=2, eval_steps=2)
    result = train(recipe)
    assert "failed" not in caplog.text
    samples = (Path(recipe.output_dir) / "samples.md").read_text(encoding="utf-8")
    assert samples.count("**The model:**") == 2
    assert [line for line in samples.splitlines() if line.startswith("## ")] == ["## What c?", "## What s?"]
    with safe_open(next(result.glob("*.safetensors")), "pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F32"}  # noqa: SIM118
    assert json.loads((result / "generation_config.json").read_text())["eos_token_id"] == [1]


def test_texts_in_bfloat16_with_validation(make_recipe: MakeRecipe, values: dict[str, Any]) -> None:
    data = {**values["data"], "validation_source": values["data"]["source"], "max_validation_rows": 2}
    recipe = make_recipe(data=data, dtype="bfloat16", max_steps=2, eval_steps=2)
    assert train(recipe).is_dir()
    assert {"summary.json", "curves.png"} <= left_by(recipe)


@pytest.mark.parametrize("tuning", ["lora+", "full"])
def test_what_failed_after_the_result_is_made_by_the_same_command(
    make_sft: MakeRecipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tuning: str
) -> None:
    recipe = make_sft(tuning=tuning, max_steps=2, eval_steps=2)
    reference = make_sft(tuning=tuning, max_steps=2, eval_steps=2, output_dir=f"{recipe.output_dir}-whole")
    train(reference)
    with monkeypatch.context() as patch:
        for name in ("write_samples", "draw_curves"):
            patch.setattr(run_summary, name, _raise(RuntimeError(f"{name} is broken")))
        result = train(recipe)
    assert "answering held-out questions failed (RuntimeError: write_samples is broken)" in caplog.text
    assert "drawing the curves failed (RuntimeError: draw_curves is broken)" in caplog.text
    assert left_by(reference) - left_by(recipe) == {"samples.md", "curves.png"}
    summary = (Path(recipe.output_dir) / "summary.json").read_text()

    caplog.clear()
    assert train(recipe) == result
    assert "is already trained; creating what is missing: curves.png, samples.md" in caplog.text
    assert left_by(reference) == left_by(recipe)
    assert (Path(recipe.output_dir) / "summary.json").read_text() == summary
    samples = [(Path(run.output_dir) / "samples.md").read_text() for run in (recipe, reference)]
    assert samples[0] == samples[1]
    with pytest.raises(ConfigError, match="holds a finished run; choose another"):
        train(recipe)


def test_a_finished_run_of_another_recipe_is_left_alone(make_sft: MakeRecipe) -> None:
    recipe = make_sft(max_steps=1, eval_steps=1)
    train(recipe)
    (Path(recipe.output_dir) / "samples.md").unlink()
    with pytest.raises(ConfigError, match=r"a finished run of another recipe \(learning_rate: 0.01 -> 0.5\)"):
        train(make_sft(max_steps=1, eval_steps=1, learning_rate=0.5))
    assert "samples.md" not in left_by(recipe)


def test_a_run_that_lacks_its_merge_alone_is_returned_for_it(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(max_steps=1)
    result = train(recipe, merge_follows=True)
    assert train(recipe, merge_follows=True) == result
    (result.parent / "merged").mkdir()
    with pytest.raises(ConfigError, match="holds a finished run"):
        train(recipe, merge_follows=True)


def test_what_looks_back_at_a_former_result_goes_with_it(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(max_steps=1)
    result = train(recipe)
    shutil.rmtree(result)
    (result.parent / "merged").mkdir()
    (result.parent / "summary.json").write_text("of a former result")
    train(recipe)
    assert not (result.parent / "merged").exists()
    assert json.loads((result.parent / "summary.json").read_text())["steps"] == 1


@pytest.fixture
def sample(base_model: Path, tmp_path: Path) -> Callable[[list[tuple[str, str]]], str]:
    """Let the untrained model answer two of these questions; give what is written of it."""

    def call(pairs: list[tuple[str, str]]) -> str:
        model, tokenizer = load_for_inference(base_model)
        ensure_chat_template(tokenizer)
        turns = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in pairs]
        path = tmp_path / "samples.md"
        conversations = map(Conversation, turns)
        write_samples(model, tokenizer, conversations, path, count=2, context_length=128, dtype=torch.float32)
        return path.read_text(encoding="utf-8")

    return call


FITTING = "\n".join(["a story", "x" * 300, "Where?"])  # bytes; its middle is cut
TOO_LONG = "\n".join(["x" * 300, "y", "z" * 300])  # nothing stands between the first and the last line


def test_a_question_is_asked_however_long_its_known_answer(sample: Callable[..., str]) -> None:
    written = sample([("Where?", "there " * 100), (FITTING, "there " * 100), ("Never asked?", "no")])
    assert written.count("**The model:**") == 2 and written.count("## Where?") == 2


def test_questions_that_do_not_fit_are_passed_over_and_counted(
    sample: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    assert sample([(TOO_LONG, "yes"), ("Where?", "there")]).count("**The model:**") == 1
    assert "held-out questions skipped: 1 conversations whose question and answers leave no room" in caplog.text


def test_where_no_question_fits_it_is_said_why(sample: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    written = sample([(TOO_LONG, "yes")] * 3)
    reason = "3 conversations whose question and answers leave no room for the document"
    assert f"None was answered: {reason}" in written
    assert f"no held-out question was answered: {reason}" in caplog.text


def _raise(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail
