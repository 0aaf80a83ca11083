"""Pools of threads that start only if memory suffices."""

import mmap
from concurrent.futures import ThreadPoolExecutor

_BYTES_PER_THREAD = 16 << 20  # a stack of 8 MiB, and what Python allocates while it starts the thread


def thread_pool(num_threads: int) -> ThreadPoolExecutor:
    """Return a pool of threads after checking that memory suffices to start all of them.

    If memory runs out while Python starts a thread, the thread never says that it runs, and `Thread.start` waits for
    that forever.

    Raises:
        MemoryError: there is not enough memory.
    """
    try:
        mmap.mmap(-1, num_threads * _BYTES_PER_THREAD).close()
    except OSError as error:
        raise MemoryError(f"{num_threads} threads cannot be started") from error
    return ThreadPoolExecutor(num_threads)
