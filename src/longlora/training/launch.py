"""Start the processes of a run under accelerate, and return one status and one message for all of them."""

import logging
import os
import signal
import sys
from argparse import Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed.run  # creates the loggers that `launch` silences
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from longlora.config import Recipe
from longlora.distributed import LAUNCHER_VARIABLE, current_strategy, local_world_size
from longlora.errors import ConfigError, LostProcessError
from longlora.support.choices import Strategy

logger = logging.getLogger("longlora")

_MISTAKE, _INTERRUPTED, _TERMINATED = 2, 128 + signal.SIGINT, 128 + signal.SIGTERM
# Seconds between SIGTERM and SIGKILL, for processes to finish the current micro-step and write a checkpoint.
_GRACE_VARIABLE, _GRACE_SECONDS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120"
_DEFAULT_PORT = 29500


def strategy_file(strategy: Strategy) -> Path:
    """Return accelerate's configuration file for a strategy; a single process needs none."""
    return Path(__file__).parent / "strategies" / f"{strategy}.yaml"


def check_installed(strategy: Strategy) -> None:
    """Check that a strategy's library is installed.

    Raises:
        ConfigError: DeepSpeed is needed and not installed.
    """
    if strategy in ("zero2", "zero3") and find_spec("deepspeed") is None:
        raise ConfigError(f"--strategy {strategy} needs DeepSpeed, which is not installed: pip install 'longlora[gpu]'")


def check_started(recipe: Recipe, wanted: Strategy | None, processes: int | None) -> None:
    """Check that this process was started the way the command line asks for; warn if not the way the recipe does.

    Raises:
        ConfigError: another launcher started it differently.
    """
    there, hardware = current_strategy(), recipe.hardware
    by_another_launcher = LAUNCHER_VARIABLE not in os.environ and os.environ.get("RANK", "0") == "0"
    if by_another_launcher and wanted is None and hardware.strategy not in (None, there):
        launcher = f"accelerate launch --config_file {strategy_file(hardware.strategy)}"
        logger.warning(
            "the recipe is planned for %s on %d GPU%s, and these processes were started for %s, as plain torchrun "
            "does: without --strategy, the launcher decides; `%s` starts the run as planned",
            *(hardware.strategy, hardware.gpus, "s" * (hardware.gpus > 1), there),
            "longlora train" if hardware.strategy == "single" else launcher,
        )
    if wanted not in (None, there):
        raise ConfigError(
            f"--strategy {wanted}: these processes were started for {there}; start them with `longlora train` itself, "
            f"or with `accelerate launch --config_file {strategy_file(wanted)}`"
        )
    if processes not in (None, local_world_size()):
        raise ConfigError(f"--processes {processes}: {local_world_size()} were started on this node; leave it out")
    check_installed(there)


def strategy_of(recipe: Recipe, *, nodes: int) -> Strategy | None:
    """Return the strategy that a recipe names, if this machine alone has exactly the GPUs that it is meant for."""
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
    """Derive the options of `accelerate launch` from the command line and the visible GPUs; None: this process alone.

    Raises:
        ConfigError: the options contradict one another, or there are too few GPUs.
    """
    num_gpus = torch.cuda.device_count()
    if strategy in (None, "single"):
        if (asked := (per_node or 1) * nodes) > 1:
            not_single = ", not single" if strategy else ""
            raise ConfigError(f"{asked} processes need --strategy ddp, fsdp2, zero2 or zero3{not_single}")
        if strategy is None and num_gpus > 1:
            logger.warning(
                "%d GPUs are visible and one is used; --strategy ddp, fsdp2, zero2 or zero3 uses all, --strategy "
                "single silences this warning",
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
        # 0 picks a free port, which only works within one node
        "main_process_port": main_port or (0 if nodes == 1 else _DEFAULT_PORT),
        "num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // per_node),
    }
    return options if main_address is None else {**options, "main_process_ip": main_address}


def launch(options: dict[str, Any], command: list[str]) -> int:
    """Run `longlora COMMAND` in every process, wait, and return one status for all.

    0 on success; 2 after a user's mistake, with its message; 130 after Ctrl-C; 143 after SIGTERM; 128 + N if signal N
    killed a process; otherwise the status of the first process that failed, with its traceback. When one process fails,
    the others are stopped.
    """
    os.environ.setdefault(_GRACE_VARIABLE, _GRACE_SECONDS)
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    for name in logging.root.manager.loggerDict:  # each has its own level, and our message covers what they would say
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
    """Return the arguments of `accelerate launch`, parsed by its own parser."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return launch_command_parser().parse_args([*words, "--module", "longlora.cli", *command])


def _tell_failure(failures: dict[int, ProcessFailure]) -> int:
    """Print the failure that caused the others, and return its status."""
    rank, failure = min(failures.items(), key=lambda item: (_consequence(item[1]), item[1].timestamp, item[0]))
    status = 128 - failure.exitcode if failure.exitcode < 0 else failure.exitcode
    if status in (_INTERRUPTED, _TERMINATED):
        return status
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        ending = f"process {rank} was ended by {name}{hint}"
        print(f"longlora: {ending}; the same command resumes from the last checkpoint", file=sys.stderr)
    elif isinstance(failure.message, dict):
        if status == _MISTAKE or _follows(failure):
            print(f"longlora: {failure.message['message'].partition(': ')[2]}", file=sys.stderr)
        else:
            print(f"in process {rank}:\n{failure.message['extraInfo']['py_callstack']}", file=sys.stderr)
    return status


def _consequence(failure: ProcessFailure) -> int:
    """Rank how likely a failure only follows from another: processes that lose a partner fail too, or are stopped."""
    if failure.exitcode == _MISTAKE:
        return 0
    if failure.exitcode == -signal.SIGTERM:
        return 4
    if failure.exitcode < 0:
        return 1
    return 3 if failure.exitcode in (_TERMINATED, _INTERRUPTED) or _follows(failure) else 2


def _follows(failure: ProcessFailure) -> bool:
    """Return whether a process ended because another was gone."""
    return isinstance(failure.message, dict) and failure.message["message"].startswith(LostProcessError.__name__)
