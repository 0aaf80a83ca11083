"""Commands in forked processes, and what is done to such a process before its command begins.

No process has a terminal: stdin is /dev/null, and what is said goes into a pipe.
"""

import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.faults.world import World

from longlora.cli import main as cli

Prepare = Callable[[], None]
STATUSES = {0, 1, 2, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
PATIENCE = 60.0
NOBODY = 65534


@dataclass
class Ended:
    """How a command ended."""

    status: int
    said: str  # on stdout and stderr
    seconds: float


class Lost(Exception):
    """Something was lost, or is half there."""


class Place:
    """Where an attack happens: a world, a folder of its own, and a source of chance."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world, self.chance = world, chance
        self.folder = world.root / f"attack-{os.getpid()}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.output = self.folder / "out"

    def power_of_ten(self, least: float, most: float) -> int:
        """A number of any size between two powers of ten."""
        return int(10 ** self.chance.uniform(least, most))


class Fork:
    """A command in a forked process, which has the libraries loaded already."""

    def __init__(self, arguments: list[Any], prepare: Prepare = lambda: None) -> None:
        self._started, self._said = time.monotonic(), bytearray()
        self._ended: Ended | None = None
        self._reading, writing = os.pipe()  # no file: what it says is not to be cut by a limit on files
        self.process = os.fork()
        if not self.process:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            self._run([str(argument) for argument in arguments], prepare)
        os.close(writing)
        os.set_blocking(self._reading, False)

    def _run(self, arguments: list[str], prepare: Prepare) -> None:
        status = 70
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have their background jobs ignore it
            signal.alarm(0)
            with open(os.devnull) as nothing:
                os.dup2(nothing.fileno(), 0)
            import logging

            logging.disable(logging.NOTSET)
            sys.argv = ["longlora", *arguments]
            sys.modules["__main__"] = ModuleType("__main__")  # which processes that a command starts would load
            prepare()
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except KeyboardInterrupt:
            status = 130
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):
                    stream.flush()
            os._exit(status)

    def wait(self) -> Ended:
        """Wait until it ends."""
        self.until(lambda: False)
        if self._ended is None:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            os.close(self._reading)
            raise TimeoutError(f"it did not end: {self._said.decode(errors='replace')[-2000:]}")
        return self._ended

    def until(self, happens: Callable[[], bool]) -> bool:
        """Wait until something happens; false if the process ended before, or patience did."""
        # A machine with more work than cores takes longer in proportion.
        deadline = time.monotonic() + PATIENCE * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        while self._ended is None and time.monotonic() < deadline:
            found, status = os.waitpid(self.process, os.WNOHANG)
            self._drain()
            if found:
                os.close(self._reading)
                said = self._said.decode(errors="replace")
                self._ended = Ended(os.waitstatus_to_exitcode(status), said, time.monotonic() - self._started)
            elif happens():
                return True
            else:
                time.sleep(0.01)
        return False

    def _drain(self) -> None:
        try:
            while part := os.read(self._reading, 1 << 16):
                self._said += part
        except BlockingIOError:
            pass

    def signal_after(self, seconds: float, number: int) -> Ended:
        """Send it a signal after some time, and wait until it ends."""
        time.sleep(seconds)
        if self._ended is None:
            with suppress(ProcessLookupError):
                os.kill(self.process, number)
        return self.wait()


def limited_files(num_bytes: int) -> Prepare:
    """No file may grow larger: as a full disk, it stops a write in its middle."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def limited_memory(num_bytes: int) -> Prepare:
    """So much more address space than there is in use."""

    def limit() -> None:
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + num_bytes, resource.RLIM_INFINITY))

    return limit


def as_nobody() -> None:
    """Give up the right to write everywhere."""
    if os.geteuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def closed_stdout() -> None:
    """Whoever reads has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)


def no_stdout() -> None:
    """As `>&-` does it."""
    os.close(1)
    sys.stdout = None  # type: ignore[assignment]


def without_home() -> None:
    """A container's user whom the system does not know."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    if os.geteuid() == 0:
        os.setuid(4242)


STREAMS = [closed_stdout, no_stdout, without_home]


def clock_jump() -> None:
    """The clock stands a year before."""
    original = time.time
    time.time = lambda: original() - 365 * 86400


def judge(ended: Ended, *, refused: bool = False) -> None:
    if "Traceback (most recent call last)" in ended.said or ended.status not in STATUSES:
        raise AssertionError(f"status {ended.status}: {ended.said[-4000:]}")
    if refused and ended.status != 2:
        raise AssertionError(f"status {ended.status} where 2 was due: {ended.said[-2000:]}")
    if ended.status == 2 and "longlora: " not in ended.said and "Usage" not in ended.said:
        raise AssertionError(f"status 2 without a message: {ended.said[-2000:]}")
