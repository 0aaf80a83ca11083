"""What the machine provides: optional packages, a cache folder, memory for threads, signals."""

import importlib.metadata
import importlib.util
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from longlora import __version__
from longlora.errors import ConfigError

_BYTES_PER_THREAD = 16 << 20  # a stack of 8 MiB, and what Python allocates while it starts the thread


def require_package(package: str | None, *, wanted_by: str) -> None:
    """Check that an optional package is installed; None requires nothing.

    Raises:
        ConfigError: it is not installed.
    """
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(f"{wanted_by} needs {package}, which is not installed: pip install {package}")


def package_versions(*names: str) -> dict[str, str]:
    """Return the versions of packages; that of longlora is known even if it is not installed."""
    return {name: __version__ if name == "longlora" else importlib.metadata.version(name) for name in names}


def user_cache(*, instead: str = "") -> Path:
    """Return longlora's folder in the user's cache, without creating it.

    Args:
        instead: another setting for the folder besides the environment, for the error message.

    Raises:
        ConfigError: XDG_CACHE_HOME is not set and there is no home folder, as in a container with `--user`.
    """
    if configured := os.environ.get("XDG_CACHE_HOME"):
        return Path(configured) / "longlora"
    try:
        return Path.home() / ".cache" / "longlora"
    except RuntimeError as error:
        remedies = " or ".join(filter(None, [instead, "the environment variable XDG_CACHE_HOME"]))
        raise ConfigError(
            f"there is no folder for a cache: HOME is not set, and there is no user with the id {os.getuid()}; "
            f"set {remedies} to a writable folder"
        ) from error


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


@contextmanager
def handling(number: int, handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let a signal call `handler` within the block, on the main thread; afterwards, the previous handler is back."""
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)
