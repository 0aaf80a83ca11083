"""The processes of a run or an evaluation: what divides the work among them, and what they do together.

accelerate divides a run; it is told by environment variables, which `accelerate launch` sets from the files in
`strategies/`. With one process each function simply does what it is given. Importing this loads no torch: the command
line looks here before anything heavy is loaded.
"""

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from longlora.errors import ConfigError, LongLoRAError
from longlora.support.choices import Strategy

Result = TypeVar("Result")

LAUNCHER_VARIABLE = "LONGLORA_LAUNCHER"
"""Process id of the launcher, for the processes that it starts."""

_PATIENCE = timedelta(days=7)  # one process may have hours of work left when another is done
_SECONDS_BETWEEN_LOOKS = 1.0


# ── What this process was started as ─────────────────────────────────────────────────────────────────────────────────


def strategy() -> Strategy:
    """The strategy that this process was started under."""
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        return "zero3" if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else "zero2"
    if world_size() == 1:
        return "single"
    return "fsdp2" if _is_on("ACCELERATE_USE_FSDP") else "ddp"


def world_size() -> int:
    """The number of processes that this one was started among, on all nodes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_on_this_node() -> int:
    """The number of those on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_started_as_one_of_several() -> bool:
    """Whether torchrun, accelerate or longlora itself has started this process beside others."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def check_started(wanted: Strategy | None, processes: int | None) -> None:
    """See that what the command line asks for is what this process was started as.

    Raises:
        ConfigError: another launcher has started it otherwise.
    """
    there, here = strategy(), processes_on_this_node()
    if wanted not in (None, there):
        raise ConfigError(
            f"--strategy {wanted}: these processes were started for {there}; start them by `longlora train` itself, or "
            f"by `accelerate launch --config_file {strategy_file(wanted)}`"
        )
    if processes not in (None, here):
        raise ConfigError(f"--processes {processes}: {here} were started on this node; leave it out")
    check_installed(there)


def strategy_file(name: Strategy) -> Path:
    """The configuration of accelerate for a strategy; a single process needs none."""
    return Path(__file__).parent / "strategies" / f"{name}.yaml"


def check_installed(name: Strategy) -> None:
    """See that a strategy's library is there.

    Raises:
        ConfigError: DeepSpeed is needed and not installed.
    """
    if name in ("zero2", "zero3") and find_spec("deepspeed") is None:
        raise ConfigError(f"--strategy {name} needs DeepSpeed, which is not installed: pip install 'longlora[gpu]'")


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


# ── What the processes of a run do together ──────────────────────────────────────────────────────────────────────────


def num_processes() -> int:
    """Count the processes of the run, on all nodes."""
    return dist.get_world_size() if (dist := _joined()) else 1


def is_main_process() -> bool:
    """Whether this process is the one that decides, writes and talks."""
    dist = _joined()
    return dist is None or dist.get_rank() == 0


def from_main_process(action: Callable[[], Result]) -> Result:
    """Do something in the main process alone and give its result to all; a user's mistake is raised in all.

    The others wait as long as it takes. The result is pickled.
    """
    if (dist := _joined()) is None:
        return action()
    outcome: list[tuple[Result | None, LongLoRAError | None]] = [(None, None)]
    if is_main_process():
        try:
            outcome = [(action(), None)]
        except LongLoRAError as error:
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome, src=0, group=_patient_group())
    result, mistake = outcome[0]
    if mistake is not None:
        raise mistake
    return result  # type: ignore[return-value]  # None only where the action returns it


def main_process_first(action: Callable[[], Result]) -> Result:
    """Do something in the main process and then in the others, which find in a cache what the first has written."""
    if _joined() is None:
        return action()
    done: list[Result] = []
    from_main_process(lambda: done.append(action()))
    return done[0] if is_main_process() else action()


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; every process must ask."""
    if (dist := _joined()) is None:
        return flag
    import torch

    votes = torch.tensor(int(flag))  # ()
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=_patient_group())
    return bool(votes)


def wait_for_all() -> None:
    """Return once every process has come here."""
    any_process(False)


def silence_other_ranks() -> None:
    """Let the main process alone log, warn and draw bars."""
    if is_main_process():
        return
    import datasets
    import transformers

    logging.getLogger("longlora").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")


def end_with_launcher() -> None:
    """End this process by SIGTERM when the launcher that started it is gone, so that nothing trains on unseen."""
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if launcher is None or os.getppid() != int(launcher):  # started by something else in between
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def shutdown() -> None:
    """Leave the other processes, if there are any; nothing here works afterwards."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _joined() -> Any:
    """torch.distributed, once this process has joined others by it; None if there are none."""
    dist: Any = sys.modules.get("torch.distributed")
    has_others = dist and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return dist if has_others else None


@cache
def _patient_group() -> Any:
    """All processes over gloo: for values on the CPU, and for waits that may outlast the strategy's own timeout."""
    return _joined().new_group(backend="gloo", timeout=_PATIENCE)


# ── What the processes of an evaluation do together ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is, the device that is its own, and how to wait for the others."""

    index: int
    count: int
    device: str | None
    wait: Callable[[], object]

    @property
    def is_first(self) -> bool:
        """Tell whether this one writes the results."""
        return self.index == 0


def alone() -> Processes:
    """Return the only process."""
    return Processes(index=0, count=1, device=None, wait=lambda: None)


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the other processes that a launcher started with this one for the block's time.

    They only ever wait for one another, so gloo serves on every device. Each reads with a model of its own, on the GPU
    that `LOCAL_RANK` counts.
    """
    if world_size() == 1:
        yield alone()
        return
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else None
        yield Processes(index=dist.get_rank(), count=dist.get_world_size(), device=device, wait=dist.barrier)
    finally:
        dist.destroy_process_group()
