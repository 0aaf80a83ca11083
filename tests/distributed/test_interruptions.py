"""Whatever ends a run of two processes ends both, with one message; the same command resumes."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.distributed.conftest import TIMEOUT_SECONDS, TrainCommand, complete, environment, losses
from tests.distributed.test_equality import assert_same_result

from longlora.config import parse_recipe
from longlora.training.run import train

pytestmark = [pytest.mark.cpu, pytest.mark.slow]

TWO = ("--processes", "2")


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a run whose parent, unlike a shell's background job, does not ignore SIGINT."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def steps_done(run: Path) -> int:
    log = run / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def ranks(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The two processes of a run, by their rank."""
    children = psutil.Process(process.pid).children()
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("victim", [0, 1])
def test_one_process_is_killed(
    train_command: TrainCommand, recipe_values: dict[str, Any], tmp_path: Path, strategy: str, victim: int
) -> None:
    long = {"max_steps": 40, "save_steps": 3}
    train(parse_recipe({**recipe_values, **long}))
    command = train_command("two", "--strategy", strategy, *TWO, gradient_accumulation_steps=1, **long)
    process = start(command)
    wait_until(lambda: bool(list((tmp_path / "two").glob("checkpoints/*/digests.json"))), process)
    both = ranks(process)
    both[victim].kill()
    _, err = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 128 + signal.SIGKILL
    assert f"longlora: process {victim} was ended by SIGKILL" in err
    assert "Traceback" not in err
    assert not any(psutil.pid_exists(rank.pid) for rank in both)
    assert not (tmp_path / "two" / "adapter").exists(), "killed too late to show anything"
    complete(command)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert_same_result(tmp_path / "one" / "adapter", tmp_path / "two" / "adapter", tolerance=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_sigterm_saves_and_ends(
    train_command: TrainCommand, recipe_values: dict[str, Any], tmp_path: Path, strategy: str
) -> None:
    long = {"max_steps": 40, "save_steps": 1000}
    train(parse_recipe({**recipe_values, **long}))
    command = train_command("two", "--strategy", strategy, *TWO, gradient_accumulation_steps=1, **long)
    process = start(command)
    wait_until(lambda: steps_done(tmp_path / "two") >= 2, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.count("of 40 steps are saved; the same command resumes from there") == 1
    assert "Traceback" not in err
    assert list((tmp_path / "two").glob("checkpoints/*/digests.json"))
    again = complete(command)
    assert "resuming from" in again.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_ctrl_c_ends_both(train_command: TrainCommand, tmp_path: Path) -> None:
    process = start(train_command("two", "--strategy", "ddp", *TWO, max_steps=1000))
    wait_until(lambda: steps_done(tmp_path / "two") >= 1, process)
    both = ranks(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 130
    assert err.count("interrupted; the same command resumes") == 1
    assert "Traceback" not in err
    assert not any(psutil.pid_exists(rank.pid) for rank in both)


def test_processes_end_with_their_launcher(train_command: TrainCommand, tmp_path: Path) -> None:
    process = start(train_command("two", "--strategy", "ddp", *TWO, max_steps=1000, save_steps=1000))
    wait_until(lambda: steps_done(tmp_path / "two") >= 1, process)
    both = ranks(process)
    process.kill()
    process.communicate(timeout=TIMEOUT_SECONDS)  # its processes have the pipes too, and end
    gone, alive = psutil.wait_procs(both, timeout=60)
    assert (len(gone), alive) == (2, [])
    assert list((tmp_path / "two").glob("checkpoints/*/digests.json"))


def test_a_checkpoint_of_fsdp2_goes_on_anywhere(
    train_command: TrainCommand, recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    """Weights, optimizer, schedule and place in the data: the curves are the same."""
    train(parse_recipe(recipe_values))
    sharded = ("--strategy", "fsdp2", *TWO)
    complete(train_command("two", *sharded, gradient_accumulation_steps=1))
    for name, options, accumulation in (("again", sharded, 1), ("single", (), 2)):
        shutil.copytree(tmp_path / "two", tmp_path / name)
        shutil.rmtree(tmp_path / name / "adapter")
        shutil.rmtree(tmp_path / name / "checkpoints" / "checkpoint-10")
        done = complete(train_command(name, *options, gradient_accumulation_steps=accumulation))
        assert f"resuming from {tmp_path / name / 'checkpoints' / 'checkpoint-8'}" in done.stderr
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
        assert_same_result(tmp_path / "one" / "adapter", tmp_path / name / "adapter", tolerance=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name_or_path": "./nowhere"}, "there is no model directory ./nowhere"),
        ({"data": {"source": "./nowhere.txt"}}, "./nowhere.txt"),
        ({"learning_rate": 1e15, "max_grad_norm": 0, "warmup_steps": 0}, "lower learning_rate"),
    ],
    ids=["everywhere", "in the first", "while training"],
)
def test_a_mistake_is_told_once(train_command: TrainCommand, changes: dict[str, Any], message: str) -> None:
    done = complete(train_command("two", "--strategy", "ddp", *TWO, **changes), status=2)
    assert done.stderr.count(message) == done.stderr.count("longlora: ") == 1
    assert "Traceback" not in done.stderr


def test_a_bug_shows_one_traceback(train_command: TrainCommand) -> None:
    done = complete(train_command("two", "--strategy", "ddp", *TWO, report_to="nonsense"), status=1)
    assert done.stderr.count("Traceback") == 1


def test_torchrun_starts_it_too(train_command: TrainCommand, recipe_values: dict[str, Any], tmp_path: Path) -> None:
    train(parse_recipe(recipe_values))
    python, _, _, *arguments = train_command("two", gradient_accumulation_steps=1)
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "longlora.cli"]
    complete([*torchrun, *arguments])
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert os.environ.get("RANK") is None
