"""Starts the processes of a run under accelerate, and gives back one status and one message for all of them."""

import logging
import os
import signal
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed.run  # with all of its loggers
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from longlora.config import Recipe
from longlora.distributed import LAUNCHER_VARIABLE, current_strategy, local_world_size
from longlora.errors import ConfigError, LostProcessError
from longlora.support.choices import Strategy

logger = logging.getLogger("longlora")

_MISTAKE, _INTERRUPTED, _TERMINATED = 2, 128 + signal.SIGINT, 128 + signal.SIGTERM
# Seconds that processes have between SIGTERM and SIGKILL: to end the running micro-step and write a checkpoint.
_GRACE_VARIABLE, _GRACE_SECONDS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120"
_DEFAULT_PORT = 29500


def strategy_file(strategy: Strategy) -> Path:
    """The configuration of accelerate for a strategy; a single process needs none."""
    return Path(__file__).parent / "strategies" / f"{strategy}.yaml"


def check_installed(strategy: Strategy) -> None:
    """See that a strategy's library is there.

    Raises:
        ConfigError: DeepSpeed is needed and not installed.
    """
    if strategy in ("zero2", "zero3") and find_spec("deepspeed") is None:
        raise ConfigError(f"--strategy {strategy} needs DeepSpeed, which is not installed: pip install 'longlora[gpu]'")


def check_started(wanted: Strategy | None, processes: int | None) -> None:
    """See that what the command line asks for is what this process was started as.

    Raises:
        ConfigError: another launcher has started it otherwise.
    """
    there = current_strategy()
    if wanted not in (None, there):
        raise ConfigError(
            f"--strategy {wanted}: these processes were started for {there}; start them by `longlora train` itself, or "
            f"by `accelerate launch --config_file {strategy_file(wanted)}`"
        )
    if processes not in (None, local_world_size()):
        raise ConfigError(f"--processes {processes}: {local_world_size()} were started on this node; leave it out")
    check_installed(there)


def strategy_of(recipe: Recipe, *, nodes: int) -> Strategy | None:
    """The strategy that a recipe names, where this machine alone has just the GPUs that it is meant for."""
    hardware = recipe.hardware
    if hardware.strategy is None or hardware.gpus == 1 or nodes > 1 or hardware.gpus != torch.cuda.device_count():
        return None
    logger.info("--strategy %s: the recipe names the %d GPUs that are visible", hardware.strategy, hardware.gpus)
    return hardware.strategy


def plan_launch(
    *,
    strategy: Strategy | None,
    per_node: int | None,
    nodes: int = 1,
    node_rank: int = 0,
    main_address: str | None = None,
    main_port: int | None = None,
) -> dict[str, Any] | None:
    """Decide from the command line and the visible GPUs on options of `accelerate launch`; None is this process alone.

    Raises:
        ConfigError: the wishes contradict one another, or there are not so many GPUs.
    """
    num_gpus = torch.cuda.device_count()
    if strategy in (None, "single"):
        if (asked := (per_node or 1) * nodes) > 1:
            not_single = ", not single" if strategy else ""
            raise ConfigError(f"{asked} processes need --strategy ddp, fsdp2, zero2 or zero3{not_single}")
        if strategy is None and num_gpus > 1:
            logger.warning(
                "%d GPUs are visible and one is used; --strategy ddp, fsdp2, zero2 or zero3 uses all, --strategy "
                "single says that one is meant",
                num_gpus,
            )
        return None
    assert strategy is not None
    check_installed(strategy)
    if per_node is None and not num_gpus:
        raise ConfigError(f"--strategy {strategy} without a visible GPU needs --processes, such as --processes 2")
    per_node = per_node or num_gpus
    if num_gpus and per_node > num_gpus:
        raise ConfigError(f"--processes {per_node} must not exceed the {num_gpus} GPUs that are visible")
    if per_node * nodes < 2:
        raise ConfigError(f"--strategy {strategy} needs at least two processes, found one; use --strategy single")
    if not 0 <= node_rank < nodes:
        raise ConfigError(f"--node-rank {node_rank} must lie below --nodes {nodes}; the first node is 0")
    if nodes > 1 and main_address is None:
        raise ConfigError(f"--nodes {nodes} needs --main-address, the address of node 0 as the others reach it")
    options = {
        "config_file": strategy_file(strategy),
        "num_processes": per_node * nodes,
        "num_machines": nodes,
        "machine_rank": node_rank,
        # 0 is any free one, which only processes of one node can agree on
        "main_process_port": main_port or (0 if nodes == 1 else _DEFAULT_PORT),
        "num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // per_node),
    }
    return options if main_address is None else {**options, "main_process_ip": main_address}


def launch(options: dict[str, Any], command: list[str]) -> int:
    """Run `longlora COMMAND` in every process, wait, and return the status of the whole.

    0, or 2 with the message of a user's mistake, 130 after Ctrl-C, 143 after SIGTERM, 128 + N where signal N ended a
    process, else what the first process that failed returned, with its traceback. Where one fails the others are ended.
    """
    os.environ.setdefault(_GRACE_VARIABLE, _GRACE_SECONDS)
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    for name in logging.root.manager.loggerDict:  # their levels are set one by one, and their news is in our message
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        launch_command(launcher_arguments(options, command))
    except ChildFailedError as error:
        return _tell_failure(error.failures)
    except SignalException as stop:
        return 128 + stop.sigval
    finally:
        del os.environ[LAUNCHER_VARIABLE]
    return 0


def launcher_arguments(options: dict[str, Any], command: list[str]) -> Namespace:
    """The arguments of `accelerate launch`, as it parses them."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return launch_command_parser().parse_args([*words, "--module", "longlora.cli", *command])


def _tell_failure(failures: dict[int, ProcessFailure]) -> int:
    """Print the failure that explains the others, and return its status."""
    rank, failure = min(failures.items(), key=lambda item: (_consequence(item[1]), item[1].timestamp, item[0]))
    status = 128 - failure.exitcode if failure.exitcode < 0 else failure.exitcode
    if status in (_INTERRUPTED, _TERMINATED):
        return status
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        ending = f"process {rank} was ended by {name}{hint}"
        print(f"longlora: {ending}; the same command resumes from the last checkpoint", file=sys.stderr)
    elif isinstance(failure.message, dict):
        if status == _MISTAKE or _follows(failure):
            print(f"longlora: {failure.message['message'].partition(': ')[2]}", file=sys.stderr)
        else:
            print(f"in process {rank}:\n{failure.message['extraInfo']['py_callstack']}", file=sys.stderr)
    return status


def _consequence(failure: ProcessFailure) -> int:
    """How likely a failure only follows from another's: those who lose a partner fail too, or are told to end."""
    if failure.exitcode == _MISTAKE:
        return 0
    if failure.exitcode == -signal.SIGTERM:
        return 4
    if failure.exitcode < 0:
        return 1
    return 3 if failure.exitcode in (_TERMINATED, _INTERRUPTED) or _follows(failure) else 2


def _follows(failure: ProcessFailure) -> bool:
    """Whether a process ended because another was gone."""
    return isinstance(failure.message, dict) and failure.message["message"].startswith(LostProcessError.__name__)
