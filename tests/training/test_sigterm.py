"""SIGTERM saves, ends with 143, and the run resumes where it stopped; one process here, two in tests/distributed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.training.conftest import MakeRecipe
from transformers import TrainerControl, TrainerState, TrainingArguments

from longlora.training import run_summary
from longlora.training import trainer as trainer_module
from longlora.training.callbacks import Sigterm, Terminated, noticing_sigterm
from longlora.training.run import train


def metrics(run: Path) -> list[str]:
    log = run / "metrics.jsonl"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.slow  # a process of its own, as `make faults` has many
def test_a_real_process_saves_and_says_so(values: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**values, "max_steps": 5000, "save_steps": 5000}))
    command = [sys.executable, "-m", "longlora.cli", "train", str(recipe)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(metrics(tmp_path / "run")) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143
    (mark,) = (tmp_path / "run").glob("checkpoints/*/digests.json")
    steps = mark.parent.name.removeprefix("checkpoint-")
    assert f"longlora: SIGTERM: the first {steps} of 5000 steps are saved; the same command resumes from there" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("between", ["on_substep_end", "on_step_end"])
def test_it_goes_on_with_the_same_losses(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, between: str
) -> None:
    """Dropped micro-steps are done again. The saved checkpoint is the last whole step's."""
    alone = make_recipe(output_dir=str(tmp_path / "alone"), save_steps=100)
    train(alone)
    recipe = make_recipe(save_steps=100)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.DenseFinish, between, _send_sigterm(after=4), raising=False)
        with pytest.raises(Terminated, match="143") as stopped:
            train(recipe)
    assert stopped.value.message == "the first 4 of 8 steps are saved"
    assert [path.parent.name for path in tmp_path.glob("run/checkpoints/*/digests.json")] == ["checkpoint-4"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(recipe)
    assert metrics_of(tmp_path / "run") == pytest.approx(metrics_of(tmp_path / "alone"), abs=1e-6)


def test_a_run_at_its_end_is_finished(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module.DenseFinish, "on_step_end", _send_sigterm(after=8), raising=False)
    assert train(make_recipe()).is_dir()


def test_before_training_there_is_nothing_to_save() -> None:
    with pytest.raises(Terminated, match="143") as stopped, noticing_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.message == "ended before training began"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_after_the_result_it_ends_at_once_and_the_rest_is_made_later(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(max_steps=1)
    with monkeypatch.context() as patch, pytest.raises(Terminated, match="143") as stopped:
        patch.setattr(run_summary, "draw_curves", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        train(recipe)
    assert stopped.value.message == "what was trained is saved"
    assert not (Path(recipe.output_dir) / "curves.png").exists()
    assert (train(recipe).parent / "curves.png").exists()


def test_a_thread_trains_without_handlers() -> None:
    seen = []

    def work() -> None:
        with noticing_sigterm() as sigterm:
            seen.append((sigterm.has_come, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, signal.SIG_DFL)]


@pytest.mark.parametrize(("plugin", "stops"), [(None, True), (object(), False)])
def test_deepspeed_is_not_stopped_within_a_step(tmp_path: Path, plugin: object, stops: bool) -> None:
    callback = Sigterm()
    args, state, control = TrainingArguments(output_dir=str(tmp_path)), TrainerState(max_steps=5), TrainerControl()
    args.deepspeed_plugin = plugin
    callback.on_train_begin(args, state, control)
    callback.handle(signal.SIGTERM, None)
    state.global_step = 2
    callback.on_substep_end(args, state, control)
    assert (control.should_training_stop, control.should_save) == (stops, stops)
    callback.on_step_end(args, state, control)
    assert (control.should_training_stop, control.should_save, callback.has_stopped) == (True, True, True)


def test_what_is_saved_already_is_not_written_again(tmp_path: Path) -> None:
    """Nor is a checkpoint written before the first step."""
    callback = Sigterm()
    args, state, control = TrainingArguments(output_dir=str(tmp_path)), TrainerState(max_steps=5), TrainerControl()
    callback.on_train_begin(args, state, control)
    callback.handle(signal.SIGTERM, None)
    callback.on_substep_end(args, state, control)
    assert (control.should_training_stop, control.should_save) == (True, False)
    state.global_step = 3
    callback.on_save(args, state, control)
    callback.on_substep_end(args, state, control)
    assert control.should_save is False


def metrics_of(run: Path) -> list[float]:
    return [yaml.safe_load(line)["loss"] for line in metrics(run)]


def _send_sigterm(after: int) -> Any:
    def callback(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == after:
            os.kill(os.getpid(), signal.SIGTERM)

    return callback
