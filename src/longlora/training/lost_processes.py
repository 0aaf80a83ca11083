"""A run ends soon, and says why, when one of its processes is gone.

Ranks wait for one another in exchanges. gloo notices that a partner is gone, NCCL often by its timeout alone, half an
hour, and the launcher of a node sees the processes of that node. So every process keeps a connection to the main one;
the system closes it when either ends, whatever ends it, and the main process tells the others.
"""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from longlora.distributed import from_main_process, is_main_process, local_world_size, num_processes, tell_launcher
from longlora.errors import ConfigError, LostProcessError

LOST = 1
"""The status of a process that ends because another is gone."""

_SECONDS_TO_END = 10.0  # for the main thread, whose own words may say more
_SECONDS_TO_NOTICE = 2.0  # after an exchange has failed
_SECONDS_TO_MEET = 60.0
_RANK_BYTES = 4


@contextmanager
def noticing_lost_processes() -> Iterator[None]:
    """End this process when another of the run is gone, for the length of a block.

    An exchange that fails then raises the loss instead. Where the main thread raises nothing for ten seconds, as within
    NCCL, the process is ended all the same.

    Raises:
        ConfigError: the processes cannot connect.
        LostProcessError: another process is gone.
    """
    if num_processes() == 1:
        yield
        return
    try:
        watch = _Watch(_connect())
    except OSError as error:
        raise ConfigError(
            f"the processes cannot connect ({error}): MASTER_ADDR must be the address of node 0, and nodes must reach "
            "any port of one another"
        ) from error
    try:
        yield
    except RuntimeError as error:
        if watch.has_lost.wait(_SECONDS_TO_NOTICE):
            raise watch.error() from error
        raise
    finally:
        watch.close()


class _Watch:
    """Reads from connections by rank, on which nothing comes but the rank of one that is gone."""

    def __init__(self, connections: dict[int, socket.socket]) -> None:
        self.has_lost = threading.Event()
        self._is_over = threading.Event()
        self._lost_rank = -1
        self._connections = connections
        for rank in connections:
            threading.Thread(target=self._read, args=(rank,), daemon=True).start()

    def error(self) -> LostProcessError:
        """What to tell the user."""
        return LostProcessError(
            f"process {self._lost_rank} is gone, and the others cannot go on without it (its launcher says what ended "
            "it); the same command resumes from the last checkpoint"
        )

    def close(self) -> None:
        """Let the processes end as they like from now on."""
        self._is_over.set()
        with ExitStack() as stack:
            for connection in self._connections.values():
                stack.enter_context(connection)
                with suppress(OSError):  # closed from the other side
                    connection.shutdown(socket.SHUT_RDWR)

    def _read(self, rank: int) -> None:
        try:
            told = self._connections[rank].recv(_RANK_BYTES)
        except OSError:  # the node is gone, without a word
            told = b""
        if self._is_over.is_set() or self.has_lost.is_set():
            return
        self._lost_rank = int.from_bytes(told) if told else rank
        self.has_lost.set()
        for connection in self._connections.values():
            with suppress(OSError):
                connection.sendall(self._lost_rank.to_bytes(_RANK_BYTES))
        if not self._is_over.wait(_SECONDS_TO_END):
            if not tell_launcher(self.error()):
                print(f"longlora: {self.error()}", file=sys.stderr, flush=True)
            os._exit(LOST)


def _connect() -> dict[int, socket.socket]:
    """Connect the main process with each other one; by rank, as each of the two sees it.

    On one node nothing listens to others, on several the port is closed once all have come.
    """
    others = num_processes() - 1
    is_one_node = local_world_size() == num_processes()
    if not is_main_process():
        address = "127.0.0.1" if is_one_node else os.environ["MASTER_ADDR"]
        connection = socket.create_connection((address, from_main_process(int)), timeout=_SECONDS_TO_MEET)
        connection.sendall(int(os.environ["RANK"]).to_bytes(_RANK_BYTES))
        return {0: _lasting(connection)}
    with socket.create_server(("127.0.0.1" if is_one_node else "", 0), backlog=others) as server:
        server.settimeout(_SECONDS_TO_MEET)
        from_main_process(lambda: server.getsockname()[1])
        accepted = [_lasting(server.accept()[0]) for _ in range(others)]
    return {int.from_bytes(connection.recv(_RANK_BYTES, socket.MSG_WAITALL)): connection for connection in accepted}


def _lasting(connection: socket.socket) -> socket.socket:
    """Let a connection wait without end, and let Linux see every few seconds that the other side's machine is there."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection
