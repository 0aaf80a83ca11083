"""Several processes that share an evaluation, when accelerate or torchrun started them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is, the device that is its own, and how to wait for the others."""

    index: int
    count: int
    device: str | None
    wait: Callable[[], None]

    @property
    def is_first(self) -> bool:
        """Tell whether this one writes the results."""
        return self.index == 0


def alone() -> Processes:
    """Return the only process."""
    return Processes(index=0, count=1, device=None, wait=lambda: None)


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the other processes that a launcher started with this one, as `WORLD_SIZE` says, for the block's time."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield alone()
        return
    from accelerate import PartialState

    # One process may have long prompts still to read when another is done: the backends' own limit is minutes.
    state = PartialState(timeout=timedelta(days=7))
    yield Processes(
        index=state.process_index, count=state.num_processes, device=str(state.device), wait=state.wait_for_everyone
    )
    state.destroy_process_group()
