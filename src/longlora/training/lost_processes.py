"""End a run promptly, with a reason, when one of its processes is gone.

Ranks wait for one another in collectives. gloo notices that a partner is gone; NCCL often does only at its timeout of
half an hour, and the launcher of a node sees only that node's processes. So every process keeps a connection to the
main one. The system closes it when either end dies, for whatever reason, and the main process tells the others.
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
"""The exit status of a process that ends because another is gone."""

_SECONDS_TO_END = 10.0  # for the main thread, whose own message may say more
_SECONDS_TO_NOTICE = 2.0  # after a collective has failed
_SECONDS_TO_MEET = 60.0
_RANK_BYTES = 4


@contextmanager
def noticing_lost_processes() -> Iterator[None]:
    """End this process when another one of the run is gone, within a block.

    A collective that fails because of that raises the loss instead. If the main thread raises nothing for ten seconds,
    as inside NCCL, the process exits anyway.

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
    """Reads from connections by rank, which carry nothing but the rank of a lost process."""

    def __init__(self, connections: dict[int, socket.socket]) -> None:
        self.has_lost = threading.Event()
        self._is_over = threading.Event()
        self._lost_rank = -1
        self._connections = connections
        for rank in connections:
            threading.Thread(target=self._read, args=(rank,), daemon=True).start()

    def error(self) -> LostProcessError:
        """Return the error for the user."""
        return LostProcessError(
            f"process {self._lost_rank} is gone, and the others cannot continue without it (its launcher says what "
            "ended it); the same command resumes from the last checkpoint"
        )

    def close(self) -> None:
        """Stop watching: from now on processes may end at any time."""
        self._is_over.set()
        with ExitStack() as stack:
            for connection in self._connections.values():
                stack.enter_context(connection)
                with suppress(OSError):  # closed by the other side
                    connection.shutdown(socket.SHUT_RDWR)

    def _read(self, rank: int) -> None:
        try:
            told = self._connections[rank].recv(_RANK_BYTES)
        except OSError:  # the node is gone without closing the connection
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
    """Connect the main process with every other one, and return this side's connections by rank.

    On a single node the port is local; across nodes it is closed once all have connected.
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
    """Remove a connection's timeout, and let Linux probe every few seconds whether the other machine is still there."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection
