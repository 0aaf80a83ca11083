"""Coordinate the processes of one command; with a single process, every function does its work directly.

Training joins its processes through accelerate, which gets the strategy from environment variables set by `accelerate
launch`; evaluation joins them here. Importing this module does not load torch, since the command line uses it earlier.
accelerate's own barriers and broadcasts use the default group, whose timeout can expire while one rank reads all texts;
those here use a group that waits for days.
"""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from longlora.errors import LongLoRAError
from longlora.support.choices import Strategy

Result = TypeVar("Result")

LAUNCHER_VARIABLE = "LONGLORA_LAUNCHER"
"""Environment variable with the launcher's process id, for the processes that it starts."""

_PATIENCE = timedelta(days=7)
_SECONDS_BETWEEN_LOOKS = 1.0


def is_launched() -> bool:
    """Return whether torchrun, accelerate or longlora itself started this process as one of several ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def world_size() -> int:
    """Return the number of processes started together with this one, including it, on all nodes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of these processes on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def current_strategy() -> Strategy:
    """Return the strategy that this process was started with."""
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        return "zero3" if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else "zero2"
    if world_size() == 1:
        return "single"
    return "fsdp2" if _is_on("ACCELERATE_USE_FSDP") else "ddp"


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def num_processes() -> int:
    """Return the number of processes that have joined, on all nodes."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main_process() -> bool:
    """Return whether this process is the main one, which decides, writes and logs."""
    import torch.distributed as dist

    return num_processes() == 1 or dist.get_rank() == 0


def from_main_process(action: Callable[[], Result]) -> Result:
    """Run an action on the main process only, and return its pickled result on all, which wait as long as it takes.

    Raises:
        LongLoRAError: raised by the action; it is raised on every process.
    """
    import torch.distributed as dist

    if num_processes() == 1:
        return action()
    outcome: list[tuple[Any, LongLoRAError | None]] = [(None, None)]
    if is_main_process():
        try:
            outcome = [(action(), None)]
        except LongLoRAError as error:
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome, src=0, group=_patient_group())
    result, mistake = outcome[0]
    if mistake is not None:
        raise mistake
    return result


def main_process_first(action: Callable[[], Result]) -> Result:
    """Run an action on the main process first, then on the others, which find its results in a cache."""
    if num_processes() == 1:
        return action()
    done: list[Result] = []
    from_main_process(lambda: done.append(action()))
    return done[0] if is_main_process() else action()


def any_process(flag: bool) -> bool:
    """Return whether the flag is set on any process; every process must call this."""
    if num_processes() == 1:
        return flag
    import torch
    import torch.distributed as dist

    votes = torch.tensor(int(flag))  # ()
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=_patient_group())
    return bool(votes)


def wait_for_everyone() -> None:
    """Return once every process has called this."""
    any_process(False)


@cache
def _patient_group() -> Any:
    """Return a gloo group of all processes, for values on the CPU."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def silence_other_ranks() -> None:
    """Disable logs, warnings and progress bars on all processes except the main one."""
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
    """Send this process SIGTERM when the launcher that started it is gone, so that no training continues unnoticed."""
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if launcher is None or os.getppid() != int(launcher):  # not started directly by the launcher
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def tell_launcher(error: BaseException) -> bool:
    """Record an exception for the launcher; return False if there is no launcher to report it to the user."""
    if LAUNCHER_VARIABLE not in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    return True


def shutdown() -> None:
    """Leave the process group, if there is one; nothing in this module works afterwards."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """This process among those of an evaluation: its index, their number, its device, and a barrier."""

    index: int = 0
    count: int = 1
    device: str | None = None
    wait: Callable[[], object] = lambda: None

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the results."""
        return self.index == 0


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the `WORLD_SIZE` processes of an evaluation within the block.

    They only wait for one another, so gloo is sufficient on every device. Each has its own model, on the GPU with index
    `LOCAL_RANK`.
    """
    if world_size() == 1:
        yield Processes()
        return
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else None
        yield Processes(index=dist.get_rank(), count=dist.get_world_size(), device=device, wait=dist.barrier)
    finally:
        dist.destroy_process_group()
