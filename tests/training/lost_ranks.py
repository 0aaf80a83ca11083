"""Three ranks of a run, of which one is killed or none, in each of some cases; what becomes of them, as JSON."""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from longlora.errors import ConfigError, LongLoRAError
from longlora.training import lost_processes

RANKS = 3


def hang() -> None:
    """Wait as NCCL does: the main thread never learns that a partner is gone."""
    time.sleep(60)


def exchange() -> None:
    """Wait as gloo does, which raises."""
    while True:
        dist.all_reduce(torch.zeros(1))


def refuse() -> None:
    """Find a mistake, one rank later than the others."""
    time.sleep(dist.get_rank() / 4)
    raise ConfigError("a mistake")


def finish() -> None:
    """End well, one rank later than the others."""
    time.sleep(dist.get_rank() / 4)


CASES: dict[str, Callable[[], None]] = {"hang": hang, "exchange": exchange, "refuse": refuse, "finish": finish}


def run(rank: int, folder: str, case: str) -> int:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    os.dup2(os.open(f"{folder}/said.{rank}", os.O_CREAT | os.O_WRONLY), sys.stderr.fileno())
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    try:
        with lost_processes.noticing_lost_processes():
            Path(f"{folder}/ready.{rank}").touch()
            CASES[case]()
    except LongLoRAError as error:
        print(f"longlora: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def outcome(case: str, victim: int | None) -> tuple[list[int], list[str]]:
    """The statuses of all ranks, and what each has said."""
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(RANKS):
            if (child := os.fork()) == 0:
                os._exit(run(rank, folder, case))
            children.append(child)
        if victim is not None:
            while len(list(Path(folder).glob("ready.*"))) < RANKS:
                time.sleep(0.01)
            os.kill(children[victim], signal.SIGKILL)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        return statuses, [Path(f"{folder}/said.{rank}").read_text() for rank in range(RANKS)]


if __name__ == "__main__":
    lost_processes._SECONDS_TO_END = 1.5
    cases = [("hang", 2), ("hang", 0), ("exchange", 1), ("refuse", None), ("finish", None)]
    print(json.dumps([outcome(case, victim) for case, victim in cases]))
