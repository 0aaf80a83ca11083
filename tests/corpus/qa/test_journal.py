"""The journal: killed, interrupted, torn, damaged or opened twice, it holds what was answered and nothing twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.corpus.qa.chat_server import ChatServer, Response, scholar
from tests.corpus.qa.conftest import SMALL, Make, Run, without_times

from longlora.corpus.qa.asking import Attempt
from longlora.corpus.qa.calls import Call, CallJournal, Reply
from longlora.corpus.qa.make import journal_path
from longlora.errors import ConfigError, DataError


def slow(seconds: float) -> Callable[[dict[str, Any], int], Response]:
    def answer(request: dict[str, Any], before: int) -> Response:
        response = scholar(request)
        response.delay = seconds
        return response

    return answer


def command(server: ChatServer, texts: Path, out: Path) -> list[str]:
    """The command line with the settings of `make`."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    where = [f"--out={out}", "--model=scholar", f"--base-url={server.base_url}"]
    return ["corpus", "make-qa", str(texts), *where, *options, "--concurrency=3", "--yes"]


def started(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "longlora.cli", *arguments], stderr=subprocess.PIPE, text=True)


def wait_for_requests(server: ChatServer, process: subprocess.Popen[str], number: int) -> None:
    end = time.monotonic() + 60
    while len(server.requests) < number:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def replies(out: Path) -> list[str]:
    """Keys of the replies in a journal; a torn last line is left out."""
    whole = journal_path(out).read_text(encoding="utf-8").split("\n")[:-1]
    return [line["reply"] for line in map(json.loads, whole) if "reply" in line]


def test_a_killed_process_loses_only_what_was_under_way(
    make: Make, server: ChatServer, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "qa.json"
    server.answer = slow(0.1)
    process = started(command(server, texts, out))
    wait_for_requests(server, process, 14)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    answered = replies(out)
    assert len(server.requests) - 3 <= len(answered) <= len(server.requests)
    assert not out.exists()
    at_the_kill = dict(server.prompts)
    time.sleep(0.15)  # what is under way at the server ends

    server.answer = scholar
    summary = make(out)
    assert summary.is_complete
    asked_twice = [prompt for prompt, count in server.prompts.items() if count > 1]
    assert len(asked_twice) == len(at_the_kill) - len(answered) <= 3
    assert len(replies(out)) == len(set(replies(out))) == len(server.prompts)
    # What was under way at the kill may have been charged: its reservation, more than its 150 tokens, is counted.
    spent = summary.spent.prompt_tokens + summary.spent.completion_tokens
    assert spent >= 150 * len(server.requests)
    assert (spent > 150 * len(server.requests)) == bool(asked_twice)
    make(tmp_path / "calm.json")
    assert without_times(out) == without_times(tmp_path / "calm.json")


@pytest.fixture
def _heeding_ctrl_c() -> Iterator[None]:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's workers ignore it
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("_heeding_ctrl_c")
def test_an_interrupt_keeps_what_is_under_way(
    run: Run, make: Make, server: ChatServer, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "qa.json"

    def interrupting(request: dict[str, Any], before: int) -> Response:
        if len(server.requests) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return slow(0.2)(request, before)

    server.answer = interrupting
    status, _, error = run(*command(server, texts, out))
    assert status == 130, error
    assert "interrupted: waiting for the calls in progress" in error
    assert "the same command resumes where it stopped" in error
    assert len(replies(out)) == len(server.requests) <= 9
    server.answer = scholar
    assert make(out).is_complete
    assert set(server.prompts.values()) == {1}


def a_call(**changes: Any) -> Call:
    values: dict[str, Any] = {
        "step": "questions",
        "model": "m",
        "prompt": "Why?",
        "material": "",
        "max_tokens": 10,
        "temperature": 0.0,
        "seed": 0,
        "template": "summary",
        "template_sha256": "1",
        "document": "2",
        "sections": ((0, 5),),
    }
    return Call(**(values | changes))


class Attempts:
    """Counts the attempts of a call that nobody pays for."""

    def __init__(self) -> None:
        self.made: list[Attempt] = []

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Attempt]:
        self.made.append(Attempt())
        yield self.made[-1]


def a_reply(text: str = "Because\n of … it. \u2028") -> Reply:
    return Reply(
        text=text,
        finish="stop",
        prompt_tokens=30,
        completion_tokens=4,
        is_counted=True,
        model="m",
        time="2026-01-01T00:00:00+00:00",
        seconds=2.0,
    )


def test_replies_and_what_was_spent_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "j.jsonl"
    with CallJournal(path, {"a": (1, 2)}) as journal:
        assert journal.seconds_per_call is None
        for seed, end in enumerate(("answered", "lost", "refused", "under way")):
            call = a_call(seed=seed)
            journal.sent(call, 100, 10)
            if end == "answered":
                journal.answered(call, a_reply())
            elif end != "under way":
                journal.failed(call, end, may_be_charged=end == "lost")
        assert (journal.spent.prompt_tokens, journal.spent.completion_tokens) == (130, 14)
    with CallJournal(path, {"a": [1, 2]}) as journal:
        assert journal.find(a_call(seed=0).key) == a_reply()
        assert journal.find(a_call(seed=1).key) is None
        assert (len(journal), journal.seconds_per_call) == (1, 2.0)
        # The one without an end counts with its reservation.
        assert (journal.spent.prompt_tokens, journal.spent.completion_tokens) == (230, 24)


@pytest.mark.parametrize(
    "change", [{"model": "n"}, {"prompt": "How?"}, {"seed": 1}, {"temperature": 0.5}, {"max_tokens": 9}]
)
def test_a_call_is_known_by_all_that_decides_its_reply(change: dict[str, Any]) -> None:
    assert a_call(**change).key != a_call().key
    assert a_call(template="other", document="3").key == a_call().key


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    long = "é" * 70_000  # longer than what is read at once to find the line's beginning
    with CallJournal(path, {}) as journal:
        journal.answered(a_call(), a_reply())
        whole = path.read_bytes()
        journal.answered(a_call(seed=1), a_reply(long))
    everything = path.read_bytes()
    for size in (len(whole) + 1, len(everything) - 1, len(whole)):
        path.write_bytes(everything[:size])
        with CallJournal(path, {}) as journal:
            assert len(journal) == 1
        assert path.read_bytes() == whole
    path.write_bytes(whole[:10])  # the header itself
    with CallJournal(path, {}) as journal:
        assert len(journal) == 0


def test_other_settings_are_refused_with_both_values(make: Make, texts: Path, tmp_path: Path) -> None:
    make(source=texts / "a-short.txt")
    before = journal_path(tmp_path / "qa.json").read_bytes()
    with pytest.raises(
        ConfigError, match=r"other settings \(questions 2 there and 3 now, judge False there and True now"
    ):
        make(source=texts / "a-short.txt", questions=3, judge=True)
    (tmp_path / "mine" / "shared").mkdir(parents=True)
    (tmp_path / "mine" / "shared" / "reply_form.txt").write_text("As JSON, please.", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"prompts '.*' there and '.*' now"):
        make(source=texts / "a-short.txt", prompts=tmp_path / "mine")
    assert journal_path(tmp_path / "qa.json").read_bytes() == before


@pytest.mark.parametrize("line", ["{", "7", '{"reply": "a"}', '{"sent": "a", "tokens": 5}', '{"failed": "a"}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j.jsonl"
    with CallJournal(path, {}) as journal:
        journal.answered(a_call(), a_reply())
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot be read in line 3 .*; delete that line"):
        CallJournal(path, {})


def test_settings_may_change_until_something_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with CallJournal(path, {"window": 1}):
        pass
    with CallJournal(path, {"window": 2}) as journal:
        journal.sent(a_call(), 1, 1)
    with pytest.raises(ConfigError, match="window 2 there and 3 now"):
        CallJournal(path, {"window": 3})


def test_a_file_that_is_no_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"instruction": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="is not a journal"):
        CallJournal(path, {})


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with CallJournal(path, {}), pytest.raises(ConfigError, match="another process is using"):
        CallJournal(path, {})
    with CallJournal(path, {}):
        pass


def test_lines_of_earlier_versions_are_read(tmp_path: Path) -> None:
    path, key = tmp_path / "j.jsonl", a_call().key
    assert key == "7cd0dcfd24dc1a3bed0e38b4f003f3fe"
    lines = [
        {"settings": {"journal_version": 1, "a": 1}},
        {"sent": key, "tokens": [70, 10]},
        {"failed": key, "reason": "no reply", "may_be_charged": True},
        {"sent": key, "tokens": [70, 10]},
        {"reply": key, "step": "questions", "template": "summary", "template_sha256": "1", "document": "2"}
        | {"sections": [[0, 5]], "seed": 0, "text": "Because.", "finish": "stop", "prompt_tokens": 30}
        | {"completion_tokens": 4, "is_counted": True, "model": "m", "time": "2026-01-01T00:00:00+00:00"}
        | {"seconds": 2.0},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with CallJournal(path, {"a": 1}) as journal:
        assert journal.find(key) == a_reply("Because.")
        assert (journal.spent.prompt_tokens, journal.spent.completion_tokens) == (100, 14)
