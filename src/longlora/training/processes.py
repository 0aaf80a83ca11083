"""What the processes of a run do together. With one process each function simply does what it is given."""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TypeVar

import datasets
import torch
import torch.distributed as dist
import transformers

from longlora.errors import LongLoRAError
from longlora.training.engines import LAUNCHER_VARIABLE

Result = TypeVar("Result")

_SECONDS_BETWEEN_LOOKS = 1.0


def num_processes() -> int:
    """Count the processes of the run, on all nodes."""
    return dist.get_world_size() if _has_others() else 1


def is_first() -> bool:
    """Whether this process is the one that decides, writes and talks."""
    return not _has_others() or dist.get_rank() == 0


def from_first(action: Callable[[], Result]) -> Result:
    """Do something in the first process alone and give its result to all; a user's mistake is raised in all.

    The others wait as long as it takes. The result is pickled.
    """
    if not _has_others():
        return action()
    outcome: list[tuple[Result | None, LongLoRAError | None]] = [(None, None)]
    if is_first():
        try:
            outcome = [(action(), None)]
        except LongLoRAError as error:
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome, src=0, group=_patient_group())
    result, mistake = outcome[0]
    if mistake is not None:
        raise mistake
    return result  # type: ignore[return-value]  # None only where the action returns it


def first_then_others(action: Callable[[], Result]) -> Result:
    """Do something in the first process and then in the others, which find in a cache what the first has written."""
    if not _has_others():
        return action()
    done: list[Result] = []
    from_first(lambda: done.append(action()))
    return done[0] if is_first() else action()


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; every process must ask."""
    if not _has_others():
        return flag
    votes = torch.tensor(int(flag))  # ()
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=_patient_group())
    return bool(votes)


def wait_for_all() -> None:
    """Return once every process has come here."""
    any_process(False)


def hush_others() -> None:
    """Let the first process alone log, warn and draw bars."""
    if is_first():
        return
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


def leave() -> None:
    """Say good-bye to the other processes, if there are any; nothing here works afterwards."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _has_others() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@cache
def _patient_group() -> dist.ProcessGroup:
    """All processes over gloo: for values on the CPU, and for waits that may outlast the engine's own timeout."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=7))
