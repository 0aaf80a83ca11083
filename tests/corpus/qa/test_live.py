"""`transformers serve` with the tiny model: a real server, whose model writes nonsense."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.corpus.qa.conftest import Run

from longlora.corpus.qa.make import journal_path
from longlora.models.chat_template import ensure_chat_template
from longlora.models.load import load_tokenizer
from longlora.tiny import tiny_model_directory

pytestmark = pytest.mark.slow


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Serve the tiny model with the paper's prompt as its chat template; its name, and the address."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_model_directory(), directory)
    tokenizer = load_tokenizer(str(directory))
    ensure_chat_template(tokenizer)
    tokenizer.save_pretrained(directory)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(directory)]
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen([*command, "--device", "cpu", "--port", str(port)], stdout=log, stderr=log)
    try:
        _wait_until_healthy(f"http://localhost:{port}/health", process, tmp_path / "server.log")
        yield str(directory), f"http://localhost:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 240
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)


def test_a_set_from_transformers_serve(run: Run, served: tuple[str, str], texts: Path, tmp_path: Path) -> None:
    model, base_url = served
    measures = ["--window", 2200, "--tokenizer", "tiny", "--reply-tokens", 24, "--notes-tokens", 48]
    arguments = ["--out", tmp_path / "qa.json", "--model", model, "--base-url", base_url, *measures, "--judge", "--yes"]
    code, out, err = run("corpus", "make-qa", texts, *arguments, "--concurrency", 2, "--json")
    assert code == 1, err  # every call was answered, and nothing passed
    result = json.loads(out)
    assert result["is_complete"]
    assert result["failures"] == {}
    assert result["num_records"] == 0
    # The paper's and the short book's kinds, the long book's over its notes, and its sections' details.
    assert set(result["dropped"]) == {"unreadable reply"}
    lines = [json.loads(line) for line in journal_path(tmp_path / "qa.json").read_text(encoding="utf-8").splitlines()]
    replies = [line for line in lines if "reply" in line]
    assert {line["step"] for line in replies} >= {"notes", "questions"}
    assert all(line["is_counted"] for line in replies)
    assert result["prompt_tokens"] == sum(line["prompt_tokens"] for line in replies)
    assert max(line["completion_tokens"] for line in replies) <= 48
    # The tokenizer's own count, and a few for the template, which it was told of by nobody.
    sent = {line["sent"]: line["tokens"][0] for line in lines if "sent" in line}
    assert all(line["prompt_tokens"] <= sent[line["reply"]] + 1 for line in replies)
