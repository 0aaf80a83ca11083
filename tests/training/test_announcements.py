"""What grouping costs before training is told once, and changes nothing."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import MakeRecipe

from longlora.training import announcements
from longlora.training.run import train
from longlora.training.trainer import ExtensionTrainer

CROSSING = ({"full_attention_interval": 2}, {"dense_finish": 0.1}, {"group_ratio": 1})


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """Tell whatever difference there is, and return what was told."""
    monkeypatch.setattr(announcements, "TOLD_FROM", -100.0)
    caplog.set_level(logging.WARNING, "longlora")
    return lambda: [record.getMessage() for record in caplog.records if "before training" in record.getMessage()]


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("chunked_loss", [True, False])
def test_it_is_told_once_with_the_remedy_and_changes_no_loss(
    chunked_loss: bool, make_recipe: MakeRecipe, tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {
        "max_steps": 2,
        "attention": {"group_size": 8},
        "chunked_loss": chunked_loss,
        "lora": {"lora_dropout": 0.2},
    }
    train(make_recipe(**common))
    [message] = told()
    monkeypatch.setattr(announcements, "TOLD_FROM", 100.0)
    train(make_recipe(**common, output_dir=str(tmp_path / "silent")))
    assert told() == [message]
    assert losses(tmp_path / "run") == losses(tmp_path / "silent")
    found = re.fullmatch(
        r"before training, the loss of 128 tokens is (\S+) in groups and (\S+) with full attention, .* "
        r"\(attention\.sink_tokens: 1; docs/sink\.md\)",
        message,
    )
    assert found is not None, message
    assert float(found[1]) == pytest.approx(losses(tmp_path / "run")[0], abs=1)  # of one micro-step of two


def test_the_loss_in_groups_is_that_of_the_first_step(
    make_recipe: MakeRecipe,
    tmp_path: Path,
    told: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found: list[float] = []
    mean_loss = ExtensionTrainer.mean_loss
    monkeypatch.setattr(
        ExtensionTrainer, "mean_loss", lambda *arguments: found.append(mean_loss(*arguments)) or found[-1]
    )
    common = {"max_steps": 1, "gradient_accumulation_steps": 1}
    train(make_recipe(**common, attention={"group_size": 4}))
    train(make_recipe(**common, attention={"pattern": "full"}, output_dir=str(tmp_path / "full")))
    full, grouped = found
    assert grouped == pytest.approx(losses(tmp_path / "run")[0], abs=1e-5)
    assert full == pytest.approx(losses(tmp_path / "full")[0], abs=1e-5)
    assert abs(full - grouped) > 1e-4
    assert "without gradients" not in caplog.text


@pytest.mark.parametrize("attention", [{"sink_tokens": 1}, {"shift": False}])
def test_where_no_sink_is_lost_the_remedy_is_another(
    attention: dict[str, Any], make_recipe: MakeRecipe, told: Any
) -> None:
    train(make_recipe(max_steps=1, attention=attention))
    [message] = told()
    assert message.endswith("use larger groups (attention.group_size)")


def test_runs_that_train_nothing_beyond_groups_are_warned(
    make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    said = "no token attends beyond its group of 32 tokens in any layer or step"
    train(make_recipe(max_steps=1, attention={"shift": False}))
    assert said in caplog.text
    for attention in ({}, {"pattern": "full"}, *({"shift": False} | also for also in CROSSING)):
        assert not make_recipe(attention=attention).trains_groups_alone


@pytest.mark.parametrize("attention", [{"pattern": "full"}, {"dense_finish": 1.0}])
def test_runs_that_never_group_are_not_asked(attention: dict[str, Any], make_recipe: MakeRecipe, told: Any) -> None:
    train(make_recipe(max_steps=1, attention=attention))
    assert not told()


def test_only_the_beginning_of_a_row_is_looked_at(
    make_recipe: MakeRecipe, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "MOST_TOKENS", 48)
    lengths: list[int] = []
    compare = announcements.set_grouping

    def noted(model: torch.nn.Module, grouping: Any) -> None:
        handle = model.register_forward_pre_hook(
            lambda _, __, named: lengths.append(named["input_ids"].shape[1]), with_kwargs=True
        )
        compare(model, grouping)
        hooks.append(handle)

    hooks: list[Any] = []
    monkeypatch.setattr(announcements, "set_grouping", noted)
    train(make_recipe(max_steps=1))
    assert told()[0].startswith("before training, the loss of 48 tokens")
    assert lengths[0] == 48
