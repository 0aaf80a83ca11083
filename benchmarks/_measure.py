"""Measure time by interleaved rounds, and the peak memory of one run.

Memory on a CPU is measured in a separate process, as the peak resident set during the run (`VmHWM`, reset by
`/proc/self/clear_refs` just before; without /proc, the peak of the process so far) minus the resident set before it.
glibc is set to return large blocks immediately (`MALLOC_MMAP_THRESHOLD_`), so that the peak includes what the run uses
at one time, with the buffers of kernels and libraries, but not what the allocator keeps for later. On CUDA it is
torch's `max_memory_allocated` minus what was allocated before.
"""

import gc
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import torch

Run = Callable[[], object]


def timed(run: Run, device: torch.device, repeats: int = 1) -> float:
    """Return the seconds of one run; with a single CPU thread, in processor time, regardless of other load."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    synchronize(device)
    start = clock()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (clock() - start) / repeats


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    runs: Mapping[str, Run], device: torch.device, *, num_rounds: int, shortest: float
) -> dict[str, list[float]]:
    """Return the seconds of each run in each round; a round contains all of them, so that slow phases affect all alike.

    Runs of less than `shortest` seconds are repeated within a round. Each is run once before the first round.
    """
    repeats = {name: max(1, math.ceil(shortest / timed(run, device))) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(num_rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run, device, repeats[name]))
    return seconds


def times_as_fast(seconds: Mapping[str, list[float]], name: str, than: str) -> float | None:
    """Return the median, over the rounds, of how many times as fast as another a run was in the same round."""
    if name not in seconds or than not in seconds:
        return None
    return statistics.median(slow / fast for slow, fast in zip(seconds[than], seconds[name], strict=True))


def peak_memory(make_run: Callable[[], Run], device: torch.device) -> int:
    """Return the peak bytes of a run beyond what `make_run` (at the top level of a module) has allocated before."""
    if device.type == "cuda":
        run = make_run()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    # Fork from a process that has loaded the modules but run nothing: torch's threads do not survive a fork.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.nn.attention.flex_attention", "longlora.attention", "matplotlib"])
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**16))  # read when that process starts
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak_of_resident_set, args=(make_run, torch.get_num_threads(), sending))
    process.start()
    sending.close()
    try:
        peak = receiving.recv()
    except EOFError:
        raise RuntimeError("the process that measures memory died, perhaps for want of memory") from None
    finally:
        process.join()
    return peak


def _send_peak_of_resident_set(make_run: Callable[[], Run], num_threads: int, answer: Connection) -> None:
    torch.set_num_threads(num_threads)
    run = make_run()
    gc.collect()
    before = _reset_peak()
    run()
    answer.send(_highest_resident_set() - before)


def _reset_peak() -> int:
    """Reset the peak resident set if the system allows it, and return the bytes from which it counts."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return _highest_resident_set()


def _highest_resident_set() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
