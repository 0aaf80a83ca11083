"""Run one call in a separate process, with limits on time and memory, so that it can be stopped and may crash."""

import os
import resource
import threading
from collections.abc import Callable
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from longlora.errors import DataError, LongLoRAError, first_line

Result = TypeVar("Result")
_SECONDS_BETWEEN_LOOKS = 0.1


def call_apart(
    function: Callable[..., Result],
    *arguments: Any,
    stop: threading.Event,
    seconds: float,
    memory_bytes: int,
    preload: tuple[str, ...] = (),
) -> Result:
    """Call a function in a separate process and return its result; arguments and result are pickled.

    Args:
        function: importable by name.
        arguments: its arguments.
        stop: stops the call when set.
        seconds: time limit.
        memory_bytes: limit on the process's address space; `resource.RLIM_INFINITY` for none.
        preload: modules that the fork server imports in advance; effective from the second call on.

    Raises:
        DataError: the call was stopped, took too long, crashed or ran out of memory.
        LongLoRAError: raised by the function; its other exceptions are raised as `RuntimeError`.
    """
    context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if preload and context.get_start_method() == "forkserver":
        context.set_forkserver_preload(list(preload))
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sending, memory_bytes, function, arguments), daemon=True)
    process.start()
    sending.close()
    try:
        waited = 0.0
        while not receiving.poll(_SECONDS_BETWEEN_LOOKS):
            waited += _SECONDS_BETWEEN_LOOKS
            if stop.is_set():
                raise DataError("stopped")
            if waited >= seconds:
                raise DataError(f"it takes more than {seconds:g} s to read; split it, or convert it to text")
        try:
            result, error = receiving.recv()
        except EOFError:
            raise DataError("it makes the reader crash; convert it with another program") from None
    finally:
        process.kill()
        process.join()
        process.close()
        receiving.close()
    if error is not None:
        raise error
    return result


def _answer(sending: Connection, memory_bytes: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _end_with_parent()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, most))
    try:
        outcome: tuple[Any, Exception | None] = (function(*arguments), None)
    except LongLoRAError as error:
        outcome = (None, error)
    except MemoryError:
        limit = "all" if memory_bytes == resource.RLIM_INFINITY else f"more than {memory_bytes / 2**30:.0f} GiB of"
        outcome = (None, DataError(f"it takes {limit} memory to read"))
    except Exception as error:
        outcome = (None, RuntimeError(f"{type(error).__name__}: {first_line(error)}"))
    sending.send(outcome)
    sending.close()
    os._exit(0)


def _end_with_parent() -> None:
    """Exit when the parent process dies, which this one would not notice otherwise."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
