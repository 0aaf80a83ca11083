"""Start a server, say when it answers, and end it with this process."""

import logging
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from longlora.errors import ConfigError
from longlora.serving.engines import EngineName, choose_engine, command_line
from longlora.serving.place import servable

logger = logging.getLogger("longlora")

_LOCAL = ("localhost", "127.0.0.1", "::1")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_PATIENCE = 10.0  # seconds in which a server may end by itself
_TERMINATED = 143  # 128 + SIGTERM


def serve(
    model: str,
    *,
    host: str = "localhost",
    port: int = 8000,
    engine: EngineName = "auto",
    name: str = "",
    ready: Callable[[str], None] = print,
) -> None:
    """Serve a model until the process is interrupted.

    Args:
        model: directory of a model or an adapter, hub name, or `tiny`.
        host: where to listen; others than this machine are let in only if it is changed.
        port: of `host`.
        engine: which server.
        name: by which clients ask for the model; its folder's if not given.
        ready: called once with a line that says where and how, when the server answers.

    Raises:
        ConfigError: the port is taken, no server is installed, or the server ends.
        CheckpointError: the model is missing, incomplete or damaged.
    """
    chosen = choose_engine(engine)
    _check_free(host, port)
    if host not in _LOCAL:
        logger.warning("listening on %s: whoever reaches port %s can use the model, without a password", host, port)
    with _terminating(), servable(model, name=name) as place:
        command = command_line(chosen, place, host=host, port=port)
        # Its own session: Ctrl-C reaches this process, which then ends the server and all that it has started.
        server = subprocess.Popen(
            command, cwd=place.parent, env=_environment(), stdout=2, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            url = f"http://{_bracketed(_EVERYWHERE.get(host, host))}:{port}"
            _wait_until_it_answers(server, url)
            ready(f"serving {url}/v1 by {chosen}: model {place.name}, {place.context_length:,} tokens; Ctrl-C ends it")
            status = server.wait()
            raise ConfigError(f"the server ended with status {status}; its own messages stand above")
        finally:
            _end(server)


def _environment() -> dict[str, str]:
    """Of the server: the name of the model must not be looked up, and nothing else either."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _check_free(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); choose another --port"
        ) from error


def _wait_until_it_answers(server: subprocess.Popen[bytes], url: str) -> None:
    # Requests to this machine go to this machine, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        if server.poll() is not None:
            raise ConfigError(
                f"the server ended with status {server.returncode} before it answered; its own messages stand above"
            )
        try:
            with opener.open(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End a server: by a word, then by a louder one, then by force; and what it leaves behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if server.poll() is None:
            os.killpg(server.pid, number)
            try:
                server.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                continue
    with suppress(ProcessLookupError):  # there is nobody left
        os.killpg(server.pid, signal.SIGKILL)


@contextmanager
def _terminating() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that the server is ended with it."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
