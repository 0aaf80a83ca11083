"""Several processes that share an evaluation, when torchrun or accelerate started them."""

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
    """Join the other processes that a launcher started with this one, as `WORLD_SIZE` says, for the block's time.

    They only ever wait for one another, so gloo serves on every device. Each reads with a model of its own, on the GPU
    that `LOCAL_RANK` counts.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield alone()
        return
    import torch
    import torch.distributed as dist

    # One process may have long prompts still to read when another is done: the default is half an hour.
    dist.init_process_group("gloo", timeout=timedelta(days=7))
    try:
        device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else None
        yield Processes(index=dist.get_rank(), count=dist.get_world_size(), device=device, wait=dist.barrier)
    finally:
        dist.destroy_process_group()
