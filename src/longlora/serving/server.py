"""Choose an OpenAI-compatible server, start it, report when it is ready, and stop it with this process."""

import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from transformers.utils import GENERATION_CONFIG_NAME

from longlora.errors import ConfigError
from longlora.inference.hosts import LOCAL, Names
from longlora.models.load import load_tokenizer
from longlora.serving.served_model import ServedModel, servable
from longlora.support.choices import EngineName, ServerEngine
from longlora.support.machine import handling

if TYPE_CHECKING:
    from starlette.applications import Starlette

logger = logging.getLogger("longlora")

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_INNER = "127.0.0.1"  # where transformers' server listens, behind the front
# Seconds for a server to shut down by itself: vLLM has processes and shared memory to clean up.
_PATIENCE = {"vllm": 10.0, "transformers": 0.3}
# Asks the kernel to end this process with its parent, even if that is killed, and then becomes the command.
_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
_LAST_WORDS = 1  # seconds for unfinished answers to complete at shutdown
_TERMINATED = 143  # 128 + SIGTERM


def serve(
    model: str,
    *,
    host: str = "localhost",
    port: int = 8000,
    engine: EngineName = "auto",
    name: str = "",
    api_key: str = "",
    allowed_hosts: Collection[str] = (),
    ready: Callable[[str], None] = print,
) -> None:
    """Serve a model until the process is interrupted.

    Args:
        model: model or adapter directory, hub name, or `tiny`.
        host: address to listen on; by default only this machine can connect.
        port: port of `host`.
        engine: server to use; "auto" is vLLM if it is installed.
        name: model name for clients; by default the folder's name.
        api_key: key that clients must send; empty for none.
        allowed_hosts: host names that requests may use, in addition to the machine's own; vLLM checks none.
        ready: called once, when the server is ready, with a line that describes it.

    Raises:
        ConfigError: the port is taken, no server is installed, or the server exits.
        CheckpointError: the model is missing, incomplete or damaged.
    """
    chosen = choose_engine(engine)
    if host not in LOCAL and not api_key:
        logger.warning("listening on %s: whoever reaches port %s can use the model; consider --api-key", host, port)
    if chosen == "vllm" and allowed_hosts:
        logger.warning("vLLM does not check host names: --allow-host has no effect")
    reached, patience = _EVERYWHERE.get(host, host), _PATIENCE[chosen]
    url = f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"
    # SIGTERM ends the block as Ctrl-C does, so the server is stopped too.
    with handling(signal.SIGTERM, _leave), _bound(host, port) as sockets, servable(model, name=name) as served:
        line = f"serving {url}/v1 by {chosen}: model {served.name}, {served.context_length:,} tokens; Ctrl-C ends it"
        if chosen == "vllm":
            for taken in sockets:  # vLLM binds the port itself
                taken.close()
            command = command_line("vllm", served, host=host, port=port)
            with _running(command, served, patience=patience, api_key=api_key) as server:
                _wait_until_it_answers(server, url)
                ready(line)
                server.wait()
        else:
            inner_port = _free_port()
            command = command_line("transformers", served, host=_INNER, port=inner_port)
            with _running(command, served, patience=patience) as server:
                inner = f"http://{_INNER}:{inner_port}"
                _wait_until_it_answers(server, inner)
                front = _front(inner, served, api_key, Names.of(host, allowed_hosts))
                for taken in sockets:
                    taken.listen()
                ready(line)
                _answer(front, sockets, until_ends=server, patience=patience)
        raise ConfigError(f"the server ended with status {server.returncode}; its own messages are above")


def choose_engine(wanted: EngineName) -> ServerEngine:
    """Return the requested server; "auto" is vLLM if it is installed, otherwise transformers' own server.

    Raises:
        ConfigError: the requested server, or both, are not installed.
    """
    if wanted != "transformers" and _vllm():
        return "vllm"
    if wanted == "vllm":
        raise ConfigError("vLLM is not installed here: `pip install vllm`, or --engine transformers")
    missing = [name for name in ("fastapi", "uvicorn", "openai", "starlette", "httpx") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}: `pip install 'longlora[serve]'`")
    return "transformers"


def command_line(engine: ServerEngine, model: ServedModel, *, host: str, port: int) -> list[str]:
    """Return the command that serves `model`, to be run in the folder around the model's."""
    address = ["--host", host, "--port", str(port)]
    if engine == "vllm":
        length = ["--max-model-len", str(model.context_length), "--served-model-name", model.name]
        return [_vllm(), "serve", str(model.folder), *length, *address]
    # transformers' server uses a model's path as its name: here a relative one, found because the server runs in the
    # folder around it. -P keeps that folder from being searched for Python modules.
    return [sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", model.name, *address]


def _vllm() -> str:
    """Return the path of vLLM's command, beside this Python or on PATH; empty if there is none."""
    return shutil.which("vllm", path=str(Path(sys.executable).parent)) or shutil.which("vllm") or ""


def _front(inner: str, served: ServedModel, api_key: str, names: Names) -> "Starlette":
    """Build the proxy that clients see in front of transformers' server at `inner`."""
    import httpx

    from longlora.serving.front import build_front
    from longlora.serving.openai_requests import Translator

    saved = served.folder / GENERATION_CONFIG_NAME
    translator = Translator(
        name=served.name,
        context_length=served.context_length,
        tokenizer=load_tokenizer(str(served.folder)),
        generation=json.loads(saved.read_text(encoding="utf-8")) if saved.exists() else {},
    )
    client = httpx.AsyncClient(base_url=inner, trust_env=False)  # no proxy for requests to this machine
    return build_front(translator, client, api_key=api_key, names=names)


def _answer(
    front: "Starlette", sockets: list[socket.socket], *, until_ends: subprocess.Popen[bytes], patience: float
) -> None:
    """Answer requests until a server ends or a signal arrives, which also ends the server and is raised again."""
    import uvicorn

    settings = uvicorn.Config(front, log_config=None, access_log=False, timeout_graceful_shutdown=_LAST_WORDS)
    outer = uvicorn.Server(settings)

    def end_together() -> None:
        while until_ends.poll() is None and not outer.should_exit:
            time.sleep(0.05)
        outer.should_exit = True
        _end(until_ends, patience)  # also ends unfinished answers

    threading.Thread(target=end_together, name="end together", daemon=True).start()
    outer.run(sockets)


@contextmanager
def _running(
    command: list[str], served: ServedModel, *, patience: float, api_key: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server within a block."""
    # The server must not look up the model's name on the hub, nor anything else.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if api_key:
        environment["VLLM_API_KEY"] = api_key  # not on the command line, which all users of the machine can see
    if sys.platform == "linux":
        command = [sys.executable, "-c", _WITH_PARENT, str(os.getpid()), *command]
    # Its own session: Ctrl-C reaches only this process, which then ends the server and everything it started.
    server = subprocess.Popen(
        command, cwd=served.folder.parent, env=environment, stdout=2, stdin=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield server
    finally:
        _end(server, patience)


@contextmanager
def _bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Bind the port on every address of the host's name on this machine.

    Raises:
        ConfigError: the port is taken, or the host is not this machine's.
    """
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        failure = OSError("it has no address")
        try:
            for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                try:
                    taken = stack.enter_context(socket.socket(family, kind, protocol))
                    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    if family == socket.AF_INET6:
                        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    taken.bind(address)
                    sockets.append(taken)
                except OSError as error:
                    # `localhost` may resolve to an IPv6 address on a machine without IPv6.
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
                    failure = error
            if not sockets:
                raise failure
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"cannot listen on {host}:{port} ({reason}); choose another --port") from error
        yield sockets


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_INNER, 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(server: subprocess.Popen[bytes], url: str) -> None:
    import httpx  # always there: huggingface_hub needs it

    while server.poll() is None:
        with suppress(httpx.HTTPError):
            # Requests to this machine bypass any proxy in the environment.
            httpx.get(f"{url}/health", timeout=5, trust_env=False).raise_for_status()
            return
        time.sleep(0.2)
    raise ConfigError(
        f"the server ended with status {server.returncode} before it answered; its own messages are above"
    )


def _end(server: subprocess.Popen[bytes], patience: float) -> None:
    """Stop a server, first gracefully, then by force, along with any processes it leaves behind."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(patience)
    with suppress(ProcessLookupError):  # nothing is left
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(_TERMINATED)
