"""Which processes are started, how accelerate is told, and what is said when they fail."""

import json
import logging
import signal
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from longlora import distributed
from longlora.config import load_recipe
from longlora.errors import ConfigError
from longlora.planner.job import Strategy
from longlora.training import launch
from longlora.training.launch import launcher_arguments, plan_launch, strategy_of

pytestmark = pytest.mark.cpu  # GPUs are pretended


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)


def test_nothing_asked_is_one_process(caplog: pytest.LogCaptureFixture) -> None:
    assert plan_launch(strategy=None, per_node=None) is None
    assert plan_launch(strategy="single", per_node=1) is None
    assert caplog.text == ""


@pytest.mark.usefixtures("eight_gpus")
def test_unused_gpus_are_told_and_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "longlora"):
        assert plan_launch(strategy=None, per_node=None) is None
    assert "8 GPUs are visible and one is used" in caplog.text
    caplog.clear()
    assert plan_launch(strategy="single", per_node=None) is None
    assert caplog.text == ""


@pytest.mark.usefixtures("eight_gpus")
def test_a_strategy_takes_every_gpu_unless_told() -> None:
    for strategy, per_node, expected in (("fsdp2", None, 8), ("ddp", 3, 3)):
        options = plan_launch(strategy=strategy, per_node=per_node)
        assert options is not None
        assert options["config_file"] == launch.strategy_file(strategy)
        assert (options["num_processes"], options["num_machines"], options["machine_rank"]) == (expected, 1, 0)
        assert options["main_process_port"] == 0 and "main_process_ip" not in options


@pytest.mark.usefixtures("eight_gpus")
def test_the_recipes_strategy_is_taken_where_its_gpus_are(caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe("llama-2-7b-longlora-8k")
    with caplog.at_level(logging.INFO, "longlora"):
        assert strategy_of(recipe, nodes=1) == "zero2"
    assert "--strategy zero2: the recipe names the 8 GPUs that are visible" in caplog.text
    assert strategy_of(recipe, nodes=2) is None
    assert strategy_of(load_recipe("llama-2-7b-longlora-8k", ["hardware.gpus=4"]), nodes=1) is None
    assert strategy_of(load_recipe("tiny-1k"), nodes=1) is None


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"strategy": None, "per_node": 2}, "2 processes need --strategy ddp, fsdp2, zero2 or zero3$"),
        ({"strategy": "single", "per_node": 2}, "zero3, not single"),
        ({"strategy": "ddp", "per_node": None}, "without a visible GPU needs --processes"),
        ({"strategy": "ddp", "per_node": 1}, "needs at least two processes, found one"),
        ({"strategy": "ddp", "per_node": 1, "nodes": 2, "node_rank": 2}, "--node-rank 2 must lie below --nodes 2"),
        ({"strategy": "ddp", "per_node": 1, "nodes": 2}, "--nodes 2 needs --main-address"),
    ],
)
def test_wishes_that_cannot_be_followed(wishes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_launch(**wishes)  # type: ignore[arg-type]


@pytest.mark.usefixtures("eight_gpus")
def test_more_processes_than_gpus() -> None:
    with pytest.raises(ConfigError, match="--processes 9 must not exceed the 8 GPUs"):
        plan_launch(strategy="ddp", per_node=9)


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_deepspeed_is_not_there(monkeypatch: pytest.MonkeyPatch, strategy: Strategy) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs DeepSpeed, which is not installed: pip install 'longlora\[gpu\]'"):
        plan_launch(strategy=strategy, per_node=2)


def test_every_strategy_but_one_process_has_its_file() -> None:
    folder = launch.strategy_file("ddp").parent
    assert {path.stem for path in folder.glob("*.yaml")} == set(get_args(Strategy)) - {"single"}
    for path in folder.glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["mixed_precision"] == "no"  # else it would overrule the recipe's dtype


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("ddp", {}),
        ("fsdp2", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}),
        ("zero2", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}),
        ("zero3", {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}),
    ],
)
def test_accelerate_reads_the_strategies(
    monkeypatch: pytest.MonkeyPatch, strategy: Strategy, expected: dict[str, str]
) -> None:
    """What accelerate makes of a file is what a process started under it takes for its strategy."""
    monkeypatch.setattr(launch, "check_installed", lambda strategy: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    plan = plan_launch(strategy=strategy, per_node=4, nodes=2, node_rank=1, main_address="10.0.0.1")
    assert plan is not None
    options, defaults, _ = _validate_launch_command(launcher_arguments(plan, ["train", "recipe.yaml"]))
    if strategy.startswith("zero"):
        options.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        command, environment = prepare_deepspeed_cmd_env(options)
        assert command is None  # torch's launcher, not DeepSpeed's over ssh
    else:
        environment = prepare_multi_gpu_env(options)
    assert expected.items() <= environment.items()
    assert environment["OMP_NUM_THREADS"] == "3"
    assert (options.nproc_per_node, options.nnodes, options.node_rank) == ("4", "2", 1)
    assert options.rdzv_endpoint == "10.0.0.1:29500"
    monkeypatch.setattr(distributed.os, "environ", {**environment, "WORLD_SIZE": "8"})
    assert distributed.current_strategy() == strategy


def test_started_otherwise_than_asked(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    recipe = load_recipe("tiny-1k")
    launch.check_started(recipe, None, None)
    launch.check_started(recipe, "ddp", 2)
    with pytest.raises(ConfigError, match=r"--strategy fsdp2: these processes were started for ddp; .*fsdp2\.yaml"):
        launch.check_started(recipe, "fsdp2", None)
    with pytest.raises(ConfigError, match="--processes 4: 2 were started on this node"):
        launch.check_started(recipe, None, 4)
    planned = load_recipe("tiny-1k", ["hardware.gpus=4", "hardware.strategy=fsdp2"])
    launch.check_started(planned, "ddp", 2)
    assert not caplog.text
    launch.check_started(planned, None, None)
    assert "planned for fsdp2 on 4 GPUs, and these processes were started for ddp" in caplog.text
    assert "config_file" in caplog.text
    caplog.clear()
    launch.check_started(load_recipe("tiny-1k", ["hardware.strategy=single"]), None, None)
    assert "planned for single on 1 GPU," in caplog.text and "`longlora train` starts the run" in caplog.text
    caplog.clear()
    monkeypatch.setenv(distributed.LAUNCHER_VARIABLE, "1")  # `longlora train --strategy ddp` told its own processes
    launch.check_started(planned, None, None)
    assert not caplog.text


def failure(tmp_path: Path, status: int, *, message: str = "", seconds: int = 0) -> ProcessFailure:
    file = tmp_path / f"{time.monotonic_ns()}.json"
    if message:
        extra = {"py_callstack": f"Traceback of {message}", "timestamp": str(seconds)}
        file.write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}))
    return ProcessFailure(local_rank=0, pid=1, exitcode=status, error_file=str(file))


def test_the_failure_that_explains_the_others_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = failure(tmp_path, 1, message="RuntimeError: Connection closed by peer", seconds=5)
    mistake = failure(tmp_path, 2, message="DataError: no text: it is empty", seconds=6)
    killed, ended = failure(tmp_path, -signal.SIGKILL), failure(tmp_path, -signal.SIGTERM)

    def told(**failures: ProcessFailure) -> tuple[int, str]:
        by_rank = {int(name[1:]): value for name, value in failures.items()}
        return launch._tell_failure(by_rank), capsys.readouterr().err

    assert told(r0=lost, r1=mistake) == (2, "longlora: no text: it is empty\n")
    status, text = told(r0=lost, r1=killed)
    assert (status, "process 1 was ended by SIGKILL, as the system does when memory runs out" in text) == (137, True)
    first = failure(tmp_path, 1, message="ZeroDivisionError: by zero", seconds=4)
    status, text = told(r0=lost, r1=first, r2=ended)
    assert (status, "Traceback of ZeroDivisionError" in text, "Connection" in text) == (1, True, False)
    gone = failure(tmp_path, 1, message="LostProcessError: process 7 is gone", seconds=3)
    assert told(r0=gone, r1=ended) == (1, "longlora: process 7 is gone\n")
    assert told(r0=gone, r1=first)[1] == text
    assert told(r0=gone, r1=killed)[0] == 137
    assert told(r0=ended, r1=failure(tmp_path, 143)) == (143, "")
    assert told(r0=failure(tmp_path, 130)) == (130, "")
