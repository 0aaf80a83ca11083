"""A server is started, waited for, and ended with the process: with small servers in the place of real ones."""

import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longlora.cli.main import app
from longlora.errors import ConfigError
from longlora.serving import serve
from longlora.serving import server as run
from longlora.serving.served_model import ServedModel
from longlora.serving.server import choose_engine, command_line
from longlora.support.choices import EngineName

# Answers /health, and everything else with a stream without an end; {extra} runs first. The child shows that all that a
# server starts is ended with it.
SERVER = """
import http.server, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
open({pids!r}, "w").write(f"{{__import__('os').getpid()}} {{child.pid}}")
{extra}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b'data: {{"choices": []}}\\n\\n')
            time.sleep(0.05)
http.server.ThreadingHTTPServer(("127.0.0.1", {port}), Handler).serve_forever()
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Small:
    """Puts a small server in the place of vLLM or transformers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, port: int, pids: Path) -> None:
        self.monkeypatch, self.port, self.pids = monkeypatch, port, pids

    def use(self, extra: str = "", *, program: str | None = None) -> None:
        def command_line(engine: str, model: ServedModel, *, host: str, port: int) -> list[str]:
            self.inner = (host, port)
            text = program if program is not None else SERVER.format(pids=str(self.pids), port=port, extra=extra)
            return [sys.executable, "-S", "-c", text]

        self.monkeypatch.setattr(run, "command_line", command_line)

    def processes(self) -> list[int]:
        return [int(number) for number in self.pids.read_text().split()]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, port: int, tmp_path: Path) -> Iterator[Small]:
    monkeypatch.setattr(run, "_PATIENCE", {"vllm": 0.5, "transformers": 0.5})
    server = Small(monkeypatch, port, tmp_path / "pids")
    yield server
    if server.pids.exists():
        for number in server.processes():
            deadline = time.monotonic() + 5  # a process that is killed takes a moment to go
            while is_running(number) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not is_running(number)


def is_running(number: int) -> bool:
    """Whether a process is there and not merely waiting to be buried."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def interrupt(line: str) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "stubborn",
    ["", "signal.signal(15, signal.SIG_IGN)"],
    ids=["willing", "deaf"],
)
def test_ctrl_c_ends_the_server(small: Small, port: int, stubborn: str) -> None:
    small.use(stubborn)
    with pytest.raises(KeyboardInterrupt):
        serve("tiny", port=port, host="127.0.0.1", ready=interrupt)
    assert len(small.processes()) == 2


def test_sigterm_ends_the_server_too(small: Small, port: int) -> None:
    small.use()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        serve("tiny", port=port, host="127.0.0.1", ready=lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_ends_a_stream_within_two_seconds(small: Small, port: int) -> None:
    small.use()
    times: list[float] = []

    def read() -> None:
        body = json.dumps({"model": "tiny", "prompt": "a", "stream": True}).encode()
        # The stream breaks off.
        url = f"http://127.0.0.1:{port}/v1/completions"
        with (
            suppress(OSError, http.client.HTTPException),
            urllib.request.urlopen(url, data=body, timeout=20) as stream,
        ):
            while line := stream.readline():
                if line.startswith(b"data:") and not times:
                    times.append(time.monotonic())
                    os.kill(os.getpid(), signal.SIGTERM)

    reader = threading.Thread(target=read)
    with pytest.raises(SystemExit):
        serve("tiny", port=port, host="127.0.0.1", engine="transformers", ready=lambda _: reader.start())
    assert time.monotonic() - times[0] < 2
    reader.join()


def test_one_line_says_where(small: Small, port: int) -> None:
    small.use()
    lines: list[str] = []

    def note(line: str) -> None:
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve("tiny", port=port, host="127.0.0.1", name="mine", engine="transformers", ready=note)
    assert lines == [f"serving http://127.0.0.1:{port}/v1 by transformers: model mine, 256 tokens; Ctrl-C ends it"]


def test_a_server_that_ends_early_or_late(small: Small, port: int) -> None:
    small.use(program="raise SystemExit(3)")
    with pytest.raises(ConfigError, match="ended with status 3 before it answered"):
        serve("tiny", port=port)
    small.use()
    with pytest.raises(ConfigError, match="ended with status -9; its own messages"):
        serve("tiny", port=port, host="127.0.0.1", ready=lambda _: os.kill(small.processes()[0], signal.SIGKILL))


def test_a_port_that_is_taken(port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = CliRunner().invoke(app, ["serve", "tiny", "--host", "127.0.0.1", "--port", str(port)])
    assert isinstance(done.exception, ConfigError)
    assert "choose another --port" in str(done.exception)


def test_listening_to_others_is_said(small: Small, port: int, caplog: pytest.LogCaptureFixture) -> None:
    small.use()
    with pytest.raises(KeyboardInterrupt):
        serve("tiny", port=port, host="0.0.0.0", ready=interrupt)
    assert "whoever reaches port" in caplog.text and "--api-key" in caplog.text
    caplog.clear()
    with pytest.raises(KeyboardInterrupt):
        serve("tiny", port=port, host="0.0.0.0", api_key="secret", ready=interrupt)
    assert "whoever" not in caplog.text


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_host_names_that_vllm_would_not_check_are_told(
    small: Small, port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, engine: run.EngineName
) -> None:
    small.use()
    monkeypatch.setattr(run, "_vllm", lambda: "/bin/vllm")
    for names in ((), ("proxy",)):
        with pytest.raises(KeyboardInterrupt):
            serve("tiny", port=port, host="127.0.0.1", engine=engine, allowed_hosts=names, ready=interrupt)
        warned = "vLLM does not check host names: --allow-host has no effect" in caplog.text
        assert warned is (engine == "vllm" and bool(names))


SERVED = ServedModel(folder=Path("/places/mine"), context_length=32768)


def test_command_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.shutil, "which", lambda name, path=None: f"/bin/{name}")
    assert command_line("vllm", SERVED, host="localhost", port=80)[:7] == [
        *("/bin/vllm", "serve", "/places/mine"),
        *("--max-model-len", "32768", "--served-model-name", "mine"),
    ]
    found = command_line("transformers", SERVED, host="localhost", port=80)
    assert found[4:] == ["serve", "mine", "--host", "localhost", "--port", "80"]


@pytest.mark.parametrize(
    ("wanted", "has_vllm", "expected"),
    [
        ("auto", True, "vllm"),
        ("auto", False, "transformers"),
        ("transformers", True, "transformers"),
        ("vllm", True, "vllm"),
    ],
)
def test_the_choice_of_a_server(
    monkeypatch: pytest.MonkeyPatch, wanted: EngineName, has_vllm: bool, expected: str
) -> None:
    monkeypatch.setattr(run.shutil, "which", lambda name, path=None: "/bin/vllm" if has_vllm else None)
    assert choose_engine(wanted) == expected


def test_a_server_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.shutil, "which", lambda name, path=None: None)
    with pytest.raises(ConfigError, match="pip install vllm"):
        choose_engine("vllm")
    monkeypatch.setattr(run, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(ConfigError, match=r"needs uvicorn: .*longlora\[serve\]"):
        choose_engine("auto")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked in Linux's way")
def test_what_it_started_ends_with_it_even_when_it_is_killed(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    served = ServedModel(folder=tmp_path / "model", context_length=8)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        with run._running(command, served, patience=0.1) as server:
            os.write(writing, str(server.pid).encode())
            time.sleep(60)
        os._exit(1)
    number = int(os.read(reading, 100))
    time.sleep(0.5)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    deadline = time.monotonic() + 20
    while is_running(number) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(number)
