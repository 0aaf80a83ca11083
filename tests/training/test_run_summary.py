"""What a run writes at its end, beside what was planned."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.training.conftest import MakeRecipe

from longlora.planner.compute import GPUS
from longlora.planner.plan import make_plan
from longlora.training.callbacks import ProgressBar
from longlora.training.preflight import planned_run
from longlora.training.run_directory import RunDirectory
from longlora.training.run_summary import draw_curves, write_summary

GIB = 2**30


@pytest.fixture
def run(tmp_path: Path, make_recipe: MakeRecipe) -> RunDirectory:
    metrics = [{"step": step, "loss": 5 - step / 10, "learning_rate": 1e-3} for step in range(1, 41)]
    metrics.insert(0, {"step": 0, "eval_loss": 5.0})
    metrics.append({"step": 40, "eval_loss": 1.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics), encoding="utf-8")
    return RunDirectory(make_recipe(output_dir=str(tmp_path)))


def test_plan_and_measurement_stand_side_by_side(
    run: RunDirectory, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=140 * GIB))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 9 * GIB)
    recipe = make_recipe(model_name_or_path="meta-llama/Llama-2-7b-hf", context_length=8192, max_steps=40)
    watch = ProgressBar(tokens_per_step=1000.0)
    watch.steps, watch.seconds = 40, 20.0
    with caplog.at_level(logging.INFO, logger="longlora"):
        write_summary(recipe, run, watch)
    summary = json.loads((run.root / "summary.json").read_text(encoding="utf-8"))
    planned = planned_run(recipe)
    plan = make_plan(planned, memory_bytes=140 * GIB, gpu=GPUS["h200"])
    assert plan.duration is not None
    assert summary["plan"] == {
        "memory_bytes": plan.memory.total,
        "seconds_per_step": pytest.approx(plan.duration.seconds / 40),
    }
    assert summary["peak_memory_bytes"] == 9 * GIB
    assert (summary["first_loss"], summary["last_loss"]) == (pytest.approx(4.85), pytest.approx(1.05))
    assert f"at most 9.0 GiB of memory, NVIDIA H200 (planned {plan.memory.total / GIB:.1f})" in caplog.text
    assert "loss 4.850 -> 1.050, means of the first and the last 2 logged losses; the last alone 1.000" in caplog.text
    assert "0.5 seconds per step (planned" in caplog.text and "2,000 tokens/s" in caplog.text


def test_a_model_that_the_planner_does_not_know_is_measured_all_the_same(
    run: RunDirectory,
    make_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 9 * GIB)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "unheard_of"}', encoding="utf-8")
    with caplog.at_level(logging.INFO, logger="longlora"):
        recipe = make_recipe(model_name_or_path=str(tmp_path / "model"))
        write_summary(recipe, run, ProgressBar(tokens_per_step=1.0))
    assert "no plan to compare with" in caplog.text and "'unheard_of'" in caplog.text
    assert json.loads((run.root / "summary.json").read_text(encoding="utf-8"))["plan"] is None
    assert "validation perplexity, full attention: 148.41 -> 4.48" in caplog.text


@pytest.mark.parametrize("metrics", [[], [{"step": 0, "eval_loss": 5.0}]])
def test_curves_of_a_run_that_has_hardly_begun(tmp_path: Path, metrics: list[dict[str, float]]) -> None:
    draw_curves(metrics, tmp_path / "curves.png")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
