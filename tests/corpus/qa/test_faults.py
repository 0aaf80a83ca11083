"""A server that misbehaves: nothing is lost, nothing is doubled, and what cannot go on says so."""

import asyncio
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.corpus.qa.chat_server import Answer as Answering
from tests.corpus.qa.chat_server import ChatServer, Response, completion, scholar, status, step_of
from tests.corpus.qa.conftest import Make, records, without_times
from tests.corpus.qa.test_journal import Attempts, a_call

from longlora.corpus.qa.asking import MOST_FAILURES_IN_A_ROW, Begin, Caller, RateLimiter
from longlora.corpus.qa.calls import Answer, Call, CallJournal, RefusedError, Reply, UnansweredError
from longlora.corpus.qa.chunks import EstimatedTokens
from longlora.corpus.qa.endpoint import Endpoint, read_answer
from longlora.corpus.qa.make import journal_path
from longlora.corpus.qa.qa_settings import Sending
from longlora.errors import ConfigError

FAULTS: dict[str, Response] = {
    "429": status(429, headers={"retry-after-ms": "30"}),
    "500 with a page": Response(b"<html>bad gateway</html>", status=500),
    "a time-out": Response(b"{}", delay=0.6),
    "garbage": Response(b'{"choices": [{"mess'),
    "a cut connection": Response(completion("x" * 500).body, is_cut=True),
    "no choices": Response(b'{"choices": []}'),
}


def faulty(fault: Response, is_struck: Callable[[str], bool]) -> Answering:
    """Answer every prompt that is struck with a fault the first time."""

    def answer(request: dict[str, Any], before: int) -> Response:
        prompt = request["messages"][0]["content"]
        return fault if before == 0 and is_struck(prompt) else scholar(request)

    return answer


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_lose_nothing_and_double_nothing(
    make: Make, server: ChatServer, texts: Path, tmp_path: Path, fault: str, seed: int
) -> None:
    make(tmp_path / "calm.json", source=texts / "b-long.txt")
    server.prompts.clear()
    struck: dict[str, bool] = {}
    rng = random.Random(seed)
    server.answer = faulty(FAULTS[fault], lambda prompt: struck.setdefault(prompt, rng.random() < 0.4 or not struck))
    summary = make(source=texts / "b-long.txt", timeout=0.4 if fault == "a time-out" else 20, concurrency=8)
    assert summary.is_complete
    assert not summary.failures
    assert without_times(tmp_path / "qa.json") == without_times(tmp_path / "calm.json")
    assert server.prompts == {prompt: 2 if struck[prompt] else 1 for prompt in struck}
    replies = [line["reply"] for line in journal(tmp_path / "qa.json") if "reply" in line]
    assert len(replies) == len(set(replies)) == len(server.prompts)


def journal(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal_path(out).read_text(encoding="utf-8").splitlines()]


def test_what_a_server_asks_to_wait_is_waited(make: Make, server: ChatServer, texts: Path) -> None:
    server.answer = lambda request, before: (
        status(429, headers={"retry-after-ms": "900"}) if len(server.requests) == 1 else scholar(request)
    )
    make(source=texts / "a-short.txt", concurrency=1)
    assert server.times[1] - server.times[0] >= 0.9
    assert server.times[-1] - server.times[1] < 0.8


def test_credentials_that_a_server_repeats_are_not_kept(
    make: Make, server: ChatServer, texts: Path, tmp_path: Path
) -> None:
    said = json.dumps({"error": {"message": "no quota for key sk-abcd1234efgh5678"}}).encode()
    server.answer = lambda request, before: Response(said, status=400)
    summary = make(source=texts / "a-short.txt")
    assert "no quota for key" in str(summary.failures)
    in_journal = journal_path(tmp_path / "qa.json").read_text(encoding="utf-8")
    assert "status 400" in in_journal
    assert "sk-abcd" not in str(summary.failures) + in_journal


def test_usage_that_is_missing_is_estimated(make: Make, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    def silent(request: dict[str, Any], before: int) -> Response:
        reply = json.loads(scholar(request).body)
        del reply["usage"]
        return Response(json.dumps(reply).encode())

    server.answer = silent
    summary = make(source=texts / "a-short.txt")
    texts_sent = [request["messages"][0]["content"] for request in server.requests]
    lines = [line for line in journal(tmp_path / "qa.json") if "reply" in line]
    assert not any(line["is_counted"] for line in lines)
    assert summary.spent.prompt_tokens == sum(-(-len(text) // 3) + 64 for text in texts_sent)
    assert summary.spent.completion_tokens == sum(-(-len(line["text"]) // 3) for line in lines)


def test_a_rejected_call_leaves_the_others(make: Make, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    def picky(request: dict[str, Any], before: int) -> Response:
        prompt = request["messages"][0]["content"]
        return status(400, "the prompt is too long") if "persons or groups" in prompt else scholar(request)

    server.answer = picky
    summary = make(source=texts / "a-short.txt")
    assert (summary.num_unanswered, summary.is_complete, summary.num_records) == (1, False, 8)
    assert [(count, "too long" in reason) for reason, count in summary.failures.items()] == [(1, True)]
    server.answer = scholar
    sent = len(server.requests)
    assert make(source=texts / "a-short.txt").is_complete
    assert len(server.requests) == sent + 1
    assert len(records(tmp_path / "qa.json")) == 10


def test_notes_that_are_missing_hold_up_only_what_needs_them(make: Make, server: ChatServer, texts: Path) -> None:
    server.answer = lambda request, before: (
        status(422) if "Take notes" in request["messages"][0]["content"] else scholar(request)
    )
    summary = make(source=texts / "b-long.txt")
    asked = [prompt for prompt in server.prompts if "Take notes" not in prompt]
    assert {"definite details" in prompt for prompt in asked} == {True}
    assert summary.num_records == 2 * len(asked) > 0
    assert summary.num_unanswered == len(server.prompts) - len(asked) > 0


@pytest.mark.parametrize(
    "refusal",
    [status(401, "wrong key"), status(404, "no such model"), status(429, "pay", code="insufficient_quota")],
    ids=["401", "404", "quota"],
)
def test_a_server_that_refuses_ends_the_run_at_once(
    make: Make, server: ChatServer, tmp_path: Path, refusal: Response
) -> None:
    server.answer = lambda request, before: refusal
    with pytest.raises(ConfigError, match=f"the model cannot be asked: status {refusal.status}"):
        make(concurrency=2)
    assert len(server.requests) <= 2
    assert not (tmp_path / "qa.json").exists()


def test_too_many_failures_in_a_row_end_the_run(make: Make, server: ChatServer) -> None:
    server.answer = lambda request, before: status(400, "never")
    with pytest.raises(ConfigError, match="10 calls in a row failed, the last with status 400"):
        make(concurrency=1)
    assert len(server.requests) == MOST_FAILURES_IN_A_ROW


def test_a_server_that_is_not_there(make: Make, texts: Path, unused_port: int) -> None:
    absent = Endpoint(base_url=f"http://127.0.0.1:{unused_port}/v1", timeout_seconds=5, attempts=2)
    summary = make(source=texts / "a-short.txt", answerer=absent)
    assert (summary.num_records, summary.num_unanswered, summary.failures.total()) == (0, 5, 5)
    assert summary.spent.prompt_tokens == 0  # nobody was reached, so nobody charges


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_call_is_given_up_after_its_attempts(make: Make, server: ChatServer, texts: Path) -> None:
    server.answer = lambda request, before: status(500)
    summary = make(source=texts / "a-short.txt", attempts=3)
    assert set(server.prompts.values()) == {3}
    assert summary.num_unanswered == len(server.prompts) == 5


def test_a_lost_reply_counts_as_spent(make: Make, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    server.answer = faulty(FAULTS["a cut connection"], lambda prompt: "persons or groups" in prompt)
    summary = make(source=texts / "a-short.txt", concurrency=1)
    lost = next(line for line in journal(tmp_path / "qa.json") if "failed" in line)
    reserved = next(line["tokens"] for line in journal(tmp_path / "qa.json") if line.get("sent") == lost["failed"])
    assert lost["may_be_charged"]
    assert summary.spent.prompt_tokens == 5 * 100 + reserved[0]
    assert summary.spent.completion_tokens == 5 * 50 + reserved[1]


@pytest.mark.parametrize("concurrency", [1, 5])
def test_parameters_that_a_server_does_not_know_are_left_out(
    make: Make, server: ChatServer, texts: Path, caplog: pytest.LogCaptureFixture, concurrency: int
) -> None:
    def modern(request: dict[str, Any], before: int) -> Response:
        if "max_tokens" in request:
            return status(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in request:
            return status(400, "Unsupported value: 'temperature'", param="temperature")
        if "seed" in request:
            return status(422, "Unexpected fields: {'seed'}")
        return scholar(request)

    server.answer = modern
    summary = make(source=texts / "a-short.txt", concurrency=concurrency)
    assert (summary.is_complete, summary.failures) == (True, {})
    assert set(server.requests[-1]) == {"model", "messages", "max_completion_tokens", "response_format", "stream"}
    assert concurrency > 1 or len(server.requests) == 5 + 3
    warnings = [record.message for record in caplog.records]
    for name in ("max_completion_tokens", "temperature", "seed"):
        assert sum(f" {name} " in warning for warning in warnings) == 1


def test_a_server_is_asked_for_the_form_of_its_replies(make: Make, server: ChatServer) -> None:
    make(judge=True)
    forms = {"questions": "pairs", "judge": "verdicts"}
    for request in server.requests:
        key = forms.get(step_of(request["messages"][0]["content"]))
        if key is None:
            assert "response_format" not in request
        else:
            schema = request["response_format"]["json_schema"]
            assert schema["strict"] is True
            assert schema["schema"]["required"] == [key]


@pytest.mark.parametrize(
    "refusal",
    [
        status(400, "This response_format type is unavailable now"),
        status(422, "Unknown field", param="response_format"),
        status(400, "The provided JSON schema contains features not supported by xgrammar."),
    ],
)
def test_a_server_without_forms_is_asked_by_the_prompt_alone(
    make: Make, server: ChatServer, texts: Path, caplog: pytest.LogCaptureFixture, refusal: Response
) -> None:
    server.answer = lambda request, before: refusal if "response_format" in request else scholar(request)
    summary = make(source=texts / "a-short.txt", concurrency=1)
    assert (summary.is_complete, summary.num_records, summary.failures) == (True, 10, {})
    assert len(server.requests) == 5 + 1
    assert [record.message[:36] for record in caplog.records] == ["the server rejects response_format ("]


def test_a_limit_that_is_too_large_is_no_unknown_parameter(make: Make, server: ChatServer, texts: Path) -> None:
    server.answer = lambda request, before: status(400, "'max_tokens' or 'max_completion_tokens' is too large: 600")
    assert make(source=texts / "a-short.txt").failures.total() == 5
    assert len(server.requests) == 5


def test_the_same_call_twice_is_sent_once(tmp_path: Path) -> None:
    class Slow:
        num_calls = 0

        async def answer(self, call: Call, begin: Begin) -> None:
            async with begin() as attempt:
                Slow.num_calls += 1
                await asyncio.sleep(0.01)
                attempt.answer = Answer(text="a", finish="stop", prompt_tokens=1, completion_tokens=1, model="m")

        async def close(self) -> None:
            pass

    async def story(journal: CallJournal) -> list[Reply]:
        caller = Caller(Slow(), journal=journal, sending=Sending(concurrency=4), counter=EstimatedTokens(3.0))
        replies = await asyncio.gather(*(caller.ask(a_call(document=name)) for name in "abab"))
        return [*replies, await caller.ask(a_call())]

    with CallJournal(tmp_path / "j.jsonl", {}) as journal:
        replies = asyncio.run(story(journal))
    assert replies == [replies[0]] * 5
    assert Slow.num_calls == 1


def test_so_many_at_once_and_no_more(make: Make, server: ChatServer, texts: Path) -> None:
    all_three = threading.Barrier(3)

    def slow(request: dict[str, Any], before: int) -> Response:
        if len(server.requests) <= 3:
            all_three.wait(timeout=60)  # however slow the machine is
        response = scholar(request)
        response.delay = 0.02
        return response

    server.answer = slow
    make(concurrency=3, source=texts)
    assert server.most_at_once == 3


def test_requests_and_tokens_are_spaced() -> None:
    async def times(sending: Sending, tokens: list[int]) -> list[float]:
        loop = asyncio.get_running_loop()
        limiter, begin, found = RateLimiter(sending), loop.time(), []

        async def one(number: int) -> None:
            await limiter.wait(number)
            found.append(loop.time() - begin)

        await asyncio.gather(*map(one, tokens))
        return sorted(found)

    by_request = asyncio.run(times(Sending(requests_per_minute=1200), [1, 1, 1]))  # 50 ms each
    assert [round(time, 2) // 0.05 for time in by_request] == [0, 1, 2]
    by_token = asyncio.run(times(Sending(tokens_per_minute=60_000), [50, 100, 1]))  # 1 ms each
    assert by_token[1] >= 0.05
    assert by_token[2] >= 0.15
    assert asyncio.run(times(Sending(), [10**6] * 3))[-1] < 0.05


@pytest.mark.parametrize(
    ("number", "fault", "num_sent", "may_be_charged"),
    [(408, UnansweredError, 3, True), (409, UnansweredError, 3, False), (429, UnansweredError, 3, False)]
    + [(500, UnansweredError, 3, False), (503, UnansweredError, 3, False), (504, UnansweredError, 3, True)]
    + [(529, UnansweredError, 3, False)]
    + [(number, RefusedError, 1, False) for number in (401, 402, 403, 404, 405)]
    + [(number, UnansweredError, 1, False) for number in (400, 413, 422)],
)
def test_what_a_status_means(
    server: ChatServer, number: int, fault: type[Exception], num_sent: int, may_be_charged: bool
) -> None:
    server.answer = lambda request, before: status(number, "because")
    attempts = Attempts()

    async def ask() -> None:
        endpoint = Endpoint(base_url=server.base_url, timeout_seconds=5, attempts=3)
        try:
            await endpoint.answer(a_call(), attempts)
        finally:
            await endpoint.close()

    with pytest.raises(fault, match=f"status {number}: .*because"):
        asyncio.run(ask())
    assert len(server.requests) == num_sent
    ended = [(attempt.answer, attempt.failure, attempt.may_be_charged) for attempt in attempts.made]
    assert ended == [(None, f"status {number}", may_be_charged)] * num_sent


def test_a_lost_connection_is_written_down_for_every_attempt(
    make: Make, server: ChatServer, texts: Path, tmp_path: Path
) -> None:
    """What the client repeats by itself is paid for each time: three lost attempts reserve three times."""
    server.answer = lambda request, before: FAULTS["a cut connection"]
    summary = make(source=texts / "a-short.txt", attempts=3)
    lines = journal(tmp_path / "qa.json")
    reserved = [line["tokens"] for line in lines if "sent" in line]
    assert len(reserved) == len(server.requests) == 15
    assert [line["may_be_charged"] for line in lines if "failed" in line] == [True] * 15
    assert summary.spent.prompt_tokens == sum(read for read, _ in reserved)
    assert summary.spent.completion_tokens == sum(written for _, written in reserved)


def test_a_repeated_call_needs_a_budget_of_its_own(make: Make, server: ChatServer, texts: Path, tmp_path: Path) -> None:
    server.answer = lambda request, before: FAULTS["a cut connection"]
    # An attempt reserves about 1,500 tokens (1,490 to 1,512 under six seeds): two fit, three do not.
    summary = make(source=texts / "a-short.txt", max_tokens=4_000, concurrency=1, attempts=6)
    reserved = [sum(line["tokens"]) for line in journal(tmp_path / "qa.json") if "sent" in line]
    assert summary.stopped_by == "the budget is spent"
    assert len(server.requests) == len(reserved) > 1
    assert sum(reserved) == summary.spent.prompt_tokens + summary.spent.completion_tokens <= 4_000
    assert sum(reserved) + min(reserved) > 4_000 - 100  # the prompts differ by a few words


def test_a_run_that_stops_does_not_wait_for_another_attempt(make: Make, server: ChatServer, texts: Path) -> None:
    def answer(request: dict[str, Any], before: int) -> Response:
        if "persons or groups" in request["messages"][0]["content"]:
            return status(429, headers={"Retry-After": "60"})
        time.sleep(0.2)
        return status(401, "wrong key")

    server.answer = answer
    begin = time.monotonic()
    with pytest.raises(ConfigError, match="status 401"):
        make(source=texts / "a-short.txt", concurrency=8)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("body", ["hello", "null", "[]", "{}", '{"choices": {}}', '{"choices": [{"index": 0}]}'])
def test_what_is_no_chat_completion(body: str) -> None:
    with pytest.raises(UnansweredError, match="the reply is not a chat completion"):
        read_answer(body, "asked")


def test_usage_that_makes_no_sense_is_no_usage() -> None:
    body = json.dumps({"choices": [{"message": {"content": "a\ud800"}}], "usage": {"prompt_tokens": "7"}})
    answer = read_answer(body, "asked")
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens, answer.model) == ("a?", None, None, "asked")


def test_every_reply_is_counted_once(make: Make, server: ChatServer) -> None:
    summary = make()
    counted = Counter(server.prompts)
    assert set(counted.values()) == {1}
    assert summary.spent.prompt_tokens == 100 * len(server.requests)
    assert summary.spent.completion_tokens == 50 * len(server.requests)
    assert summary.num_answered == len(server.requests)
