"""What the processes of one command know of each other and do together; with one process, each does simply its work.

Training joins its processes through accelerate, which `accelerate launch` tells of the strategy by environment
variables; an evaluation joins them here. Importing this module loads no torch: the command line asks it before that.
accelerate's own waits and broadcasts go through the default group, whose timeout a rank may outlast that waits for
another to read all texts; those here have a group that waits for days.
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
"""Process id of the launcher, for the processes that it starts."""

_PATIENCE = timedelta(days=7)
_SECONDS_BETWEEN_LOOKS = 1.0


def is_launched() -> bool:
    """Whether torchrun, accelerate or longlora itself has started this process as a rank of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def world_size() -> int:
    """The number of processes that this one was started among, on all nodes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """The number of those on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def current_strategy() -> Strategy:
    """The strategy that this process was started under."""
    if _is_on("ACCELERATE_USE_DEEPSPEED"):
        return "zero3" if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else "zero2"
    if world_size() == 1:
        return "single"
    return "fsdp2" if _is_on("ACCELERATE_USE_FSDP") else "ddp"


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def num_processes() -> int:
    """Count the processes that have joined, on all nodes."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process is the one that decides, writes and talks."""
    import torch.distributed as dist

    return num_processes() == 1 or dist.get_rank() == 0


def from_main_process(action: Callable[[], Result]) -> Result:
    """Do something on the main process alone and give its result, pickled, to all; they wait as long as it takes.

    Raises:
        LongLoRAError: a user's mistake that the action raised, on every process.
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
    """Do something on the main process and then on the others, which find in a cache what it has written."""
    if num_processes() == 1:
        return action()
    done: list[Result] = []
    from_main_process(lambda: done.append(action()))
    return done[0] if is_main_process() else action()


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; every process must ask."""
    if num_processes() == 1:
        return flag
    import torch
    import torch.distributed as dist

    votes = torch.tensor(int(flag))  # ()
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=_patient_group())
    return bool(votes)


def wait_for_everyone() -> None:
    """Return once every process has come here."""
    any_process(False)


@cache
def _patient_group() -> Any:
    """All processes over gloo, for values on the CPU."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=_PATIENCE)


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


def tell_launcher(error: BaseException) -> bool:
    """Leave an exception where the launcher of this process looks for it; False where it will tell the user nothing."""
    if LAUNCHER_VARIABLE not in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    return True


def shutdown() -> None:
    """Leave the other processes, if there are any; nothing here works afterwards."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@dataclass(frozen=True)
class Processes:
    """Which of how many processes of an evaluation this is, the device that is its own, and how to wait for others."""

    index: int = 0
    count: int = 1
    device: str | None = None
    wait: Callable[[], object] = lambda: None

    @property
    def is_first(self) -> bool:
        """Whether this one writes the results."""
        return self.index == 0


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes of an evaluation, as `WORLD_SIZE` counts them, for the block's time.

    They only ever wait for one another, so gloo serves on every device. Each reads with a model of its own, on the GPU
    that `LOCAL_RANK` counts.
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
