"""What the tests of questions share: texts, a server, a way to make a set quickly."""

import json
import logging
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.corpus.qa.chat_server import ChatServer, scholar

from longlora.cli import main as cli
from longlora.corpus.qa.chunks import EstimatedTokens, shelf_texts
from longlora.corpus.qa.make import Summary, make_questions
from longlora.corpus.qa.prompt_files import load_prompts
from longlora.corpus.qa.qa_settings import QASettings, Sending
from longlora.data.sources import Source, find_items

Run = Callable[..., tuple[int, str, str]]
Make = Callable[..., Summary]

WORDS = "sea ship calm stone river lamp winter letter captain garden window road bread silver horse evening".split()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; give its status and what it printed to stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(logging.getLogger("longlora"), "handlers", [])  # main puts one there, on this test's stderr
        monkeypatch.setattr(sys, "argv", ["longlora", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capfd.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return call


def prose(rng: random.Random, num_words: int) -> str:
    """Paragraphs of sentences of words, no two alike."""
    words = [f"{rng.choice(WORDS)}{number}" if number % 3 == 0 else rng.choice(WORDS) for number in range(num_words)]
    ends = [
        word + (".\n\n" if number % 70 == 69 else ". " if number % 9 == 8 else " ") for number, word in enumerate(words)
    ]
    return "".join(ends)


@pytest.fixture
def texts(tmp_path: Path, seed: int) -> Path:
    """A folder with a short book, a long one, and a paper."""
    rng = random.Random(seed)
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a-short.txt").write_text(prose(rng, 150), encoding="utf-8")
    (folder / "b-long.txt").write_text(prose(rng, 2500), encoding="utf-8")
    paper = f"A Title\n\nAbstract\n\n{prose(rng, 120)}\n\n1 Introduction\n{prose(rng, 120)}\n\nReferences\n\n[1] One.\n"
    (folder / "c-paper.txt").write_text(paper, encoding="utf-8")
    return folder


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(scholar).running() as running:
        yield running


WINDOW = 2400
"""Tokens; with the replies below, the long book has several sections and its notes need condensing."""

SMALL: dict[str, Any] = {"window": WINDOW, "reply_tokens": 600, "notes_tokens": 300}


@pytest.fixture
def make(server: ChatServer, texts: Path, tmp_path: Path) -> Make:
    """Make a set with the server, fast; settings and ways of sending may be changed."""

    def call(out: Path = tmp_path / "qa.json", **changes: Any) -> Summary:
        ways = {name: changes.pop(name) for name in Sending.__dataclass_fields__ if name in changes}
        server_ways = {"timeout_seconds": changes.pop("timeout", 20.0), "attempts": changes.pop("attempts", 6)}
        source = changes.pop("source", texts)
        confirm = changes.pop("confirm", lambda estimate: True)
        answerer = changes.pop("answerer", "endpoint")
        folder = changes.pop("prompts", None)
        if answerer == "endpoint":
            from longlora.corpus.qa.endpoint import Endpoint

            answerer = Endpoint(base_url=server.base_url, **server_ways)
        settings = QASettings(**({"model": "scholar"} | SMALL | changes))
        return make_questions(
            source
            if isinstance(source, Source)
            else find_items(str(source), shelf_texts(), "train", None, identity=[]),
            out,
            settings=settings,
            prompts=load_prompts(folder),
            counter=EstimatedTokens(settings.chars_per_token),
            answerer=answerer,
            sending=Sending(**{"concurrency": 4, **ways}),
            confirm=confirm,
        )

    return call


def records(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def without_times(path: Path) -> list[dict[str, Any]]:
    found = records(path)
    for record in found:
        del record["provenance"]["time"]
    return found
