"""What to do where memory is scarce: find out, and start threads only if it suffices."""

import mmap
from concurrent.futures import ThreadPoolExecutor

_BYTES_PER_THREAD = 16 << 20  # a stack of 8 MiB, and what Python allocates while it starts the thread


def can_allocate(num_bytes: int) -> bool:
    """Return whether the process may still allocate so many bytes of address space."""
    try:
        mmap.mmap(-1, num_bytes).close()
    except OSError:
        return False
    return True


def thread_pool(num_threads: int) -> ThreadPoolExecutor:
    """Return a pool of threads after checking that memory suffices to start all of them.

    If memory runs out while Python starts a thread, the thread never says that it runs, and `Thread.start` waits for
    that forever.

    Raises:
        MemoryError: there is not enough memory.
    """
    if not can_allocate(num_threads * _BYTES_PER_THREAD):
        raise MemoryError(f"{num_threads} threads cannot be started")
    return ThreadPoolExecutor(num_threads)
