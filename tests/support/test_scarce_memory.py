"""Threads start where memory suffices for them, and are refused where it does not."""

import resource
from multiprocessing import get_context
from pathlib import Path

import pytest

from longlora.support.machine import thread_pool


def _under_a_limit(more_bytes: int, num_threads: int) -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + more_bytes, resource.RLIM_INFINITY))
    try:
        with thread_pool(num_threads) as pool:
            assert sum(pool.map(abs, range(100))) == 4950
    except MemoryError as error:
        raise SystemExit(3) from error


@pytest.mark.parametrize(("mebibytes", "status"), [(60, 3), (600, 0)])
def test_no_thread_starts_without_memory(mebibytes: int, status: int) -> None:
    process = get_context("spawn").Process(target=_under_a_limit, args=(mebibytes << 20, 8))
    process.start()
    process.join(60)
    assert process.exitcode == status
