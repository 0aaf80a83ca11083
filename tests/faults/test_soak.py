"""Servers that are asked for long take no more memory and no more files; a line of a gigabyte is refused soon."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from tests.faults.servers import answers, ask, free_port
from tests.faults.world import World

from longlora.data.sources import read_conversations, read_documents
from longlora.errors import DataError

pytestmark = pytest.mark.slow

NUM_REQUESTS = 500
WARM = 100  # requests until caches and pools are full
MOST_GROWTH_BYTES = 64 << 20
MOST_NEW_DESCRIPTORS = 8
GIGABYTE = 10**9


def taken(process: psutil.Process) -> tuple[int, int]:
    """Memory in bytes, and open files, of a process and of those that it started."""
    family = [process, *process.children(recursive=True)]
    return sum(each.memory_info().rss for each in family), sum(each.num_fds() for each in family)


@contextmanager
def running(arguments: list[str], url: str, cache: Path) -> Iterator[psutil.Process]:
    """A server in a process of its own, once it answers."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen([sys.executable, "-m", "longlora.cli", *arguments], env=environment)
    try:
        deadline = time.monotonic() + 600
        while not answers(url):
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        yield psutil.Process(server.pid)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def soak(process: psutil.Process, request: Callable[[int], None], name: str) -> None:
    """Ask again and again, and see that memory and files stay as they are after the first requests."""
    began = time.monotonic()
    for number in range(NUM_REQUESTS):
        if number == WARM:
            warm = taken(process)
        request(number)
    grown, opened = (after - before for after, before in zip(taken(process), warm, strict=True))
    print(
        f"{name}: {NUM_REQUESTS} requests in {time.monotonic() - began:.0f} s; {warm[0] / 2**20:.0f} MiB and {warm[1]} "
        f"files after {WARM}, then {grown / 2**20:+.1f} MiB and {opened:+} files"
    )
    assert grown < MOST_GROWTH_BYTES and opened <= MOST_NEW_DESCRIPTORS


def ask_about_a_document(url: str, number: int) -> None:
    """What a new visitor's browser does: open the page, upload a document, ask a question, and leave."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as visitor:
        config = visitor.get("/config").json()
        ids = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
        event_of = {tuple(event["inputs"]): event["id"] for event in config["dependencies"]}
        prefix, key = config["api_prefix"], f"visitor{number}"

        def send(inputs: list[str], values: list[object]) -> str:
            event = {"fn_index": event_of[tuple(ids[name] for name in inputs)], "data": values, "session_hash": key}
            assert visitor.post(f"{prefix}/queue/join", json=event).status_code == 200
            with visitor.stream("GET", f"{prefix}/queue/data", params={"session_hash": key}) as stream:
                return next(line for line in stream.iter_lines() if "process_completed" in line)

        with visitor.stream("GET", f"{prefix}/heartbeat/{key}"):  # its end is that the page was closed
            files = {"files": (f"{number}.txt", f"The sea number {number} is wide. ".encode() * 9)}
            (path,) = visitor.post(f"{prefix}/upload", files=files).json()
            document = {"path": path, "orig_name": f"{number}.txt", "meta": {"_type": "gradio.FileData"}}
            assert f"{number}.txt" in send(["document"], [document])
            assert "assistant" in send(["question", "chat"], ["why", []])


def test_web_takes_no_more_and_more(world: World, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["web", str(world.root / "finished" / "adapter"), "--port", str(port), "--max-new-tokens", "2"]
    with running(arguments, url, tmp_path) as process:
        soak(process, lambda number: ask_about_a_document(url, number), "web")


def test_serve_takes_no_more_and_more(world: World, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://localhost:{port}/v1"
    arguments = ["serve", str(world.root / "finished" / "adapter"), "--engine", "transformers", "--port", str(port)]

    def question(number: int) -> None:
        messages = [{"role": "user", "content": f"why {number}"}]
        answer = ask(f"{url}/chat/completions", {"model": "finished", "messages": messages, "max_tokens": 2})
        assert answer["choices"]

    with running(arguments, f"{url}/models", tmp_path) as process:
        soak(process, question, "serve")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_a_line_of_a_gigabyte(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(b'{"text": "' if name != "a.txt" else b"")
        for _ in range(GIGABYTE // 10**7):
            file.write(b"the sea   " * 10**6)
        file.write(b'"}\n')
    began, before = time.monotonic(), psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    for read in (read_documents, read_conversations):
        with pytest.raises(DataError) as refused:
            next(iter(read(str(path))))
        assert len(str(refused.value)) < 1000
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    grown = (int(status["VmHWM"].split()[0]) * 1024 - before) / 2**20
    print(f"{name}: refused in {time.monotonic() - began:.1f} s with {grown:.0f} MiB: {refused.value}")
    assert time.monotonic() - began < 60
    assert grown < (3072 if name == "a.json" else 1024)  # a list is read as a whole, and has its own bound
