"""What divides a run among processes: one process, DDP, FSDP2, or DeepSpeed's ZeRO-2 and ZeRO-3.

accelerate does the dividing; it is told by environment variables, which `accelerate launch` sets from the files in
`strategies/`.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from longlora.errors import ConfigError

Engine = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]
LAUNCHER_VARIABLE = "LONGLORA_LAUNCHER"
"""Process id of the launcher, for the processes that it starts."""

ENGINES: tuple[Engine, ...] = get_args(Engine)


def engine() -> Engine:
    """The engine that this process was started under."""
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        return "zero3" if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else "zero2"
    if world_size() == 1:
        return "single"
    return "fsdp2" if _is_on("ACCELERATE_USE_FSDP") else "ddp"


def world_size() -> int:
    """The number of processes of the run that this process was started in, on all nodes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_started_as_one_of_several() -> bool:
    """Whether torchrun, accelerate or longlora itself has started this process beside others."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def check_started(wanted: Engine | None, processes: int | None) -> None:
    """See that what the command line asks for is what this process was started as.

    Raises:
        ConfigError: another launcher has started it otherwise.
    """
    there = engine()
    if wanted not in (None, there):
        raise ConfigError(
            f"--strategy {wanted}: these processes were started for {there}; start them by `longlora train` itself, or "
            f"by `accelerate launch --config_file {strategy_file(wanted)}`"
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if processes not in (None, local):
        raise ConfigError(f"--processes {processes}: {local} were started on this node; leave it out")
    check_installed(there)


def strategy_file(name: Engine) -> Path:
    """The configuration of accelerate for an engine; a single process needs none."""
    return Path(__file__).parent / "strategies" / f"{name}.yaml"


def check_installed(name: Engine) -> None:
    """See that an engine's library is there.

    Raises:
        ConfigError: DeepSpeed is needed and not installed.
    """
    if name in ("zero2", "zero3") and find_spec("deepspeed") is None:
        raise ConfigError(f"--strategy {name} needs DeepSpeed, which is not installed: pip install 'longlora[gpu]'")


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"
