"""The budget holds: what a call may take is there before it is sent."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.corpus.qa.chat_server import ChatServer, Response, completion, written
from tests.corpus.qa.conftest import WINDOW, Make

from longlora.corpus.qa.asking import Budget
from longlora.corpus.qa.qa_settings import Sending, Spent
from longlora.errors import ConfigError


@pytest.mark.parametrize("concurrency", [1, 5])
def test_tokens_never_exceed_the_budget(make: Make, server: ChatServer, texts: Path, concurrency: int) -> None:
    source = texts / "b-long.txt"
    whole = make(texts.parent / "whole.json", source=source).spent
    everything = whole.prompt_tokens + whole.completion_tokens
    limit = everything // 4 + WINDOW
    server.requests.clear()
    summary = make(max_tokens=limit, concurrency=concurrency, source=source)
    spent = summary.spent.prompt_tokens + summary.spent.completion_tokens
    assert summary.stopped_by == "the budget is spent"
    assert not summary.is_complete
    assert spent <= limit
    assert spent == 150 * len(server.requests)
    assert spent > limit - WINDOW  # used as far as it goes: no call takes more than a window
    finished = make(max_tokens=10**9, source=source)
    assert finished.is_complete
    assert len(server.requests) * 150 == finished.spent.prompt_tokens + finished.spent.completion_tokens == everything


def test_a_cost_is_held_over_all_runs(make: Make, server: ChatServer) -> None:
    limits = {"max_cost": 0.02, "price_in": 2.0, "price_out": 10.0}  # so a call costs 700 millionths
    for _ in range(3):  # a later run may find a smaller call that still fits
        summary = make(**limits)
        assert summary.stopped_by == "the budget is spent"
        cost = summary.cost
        assert cost == (summary.spent.prompt_tokens * 2 + summary.spent.completion_tokens * 10) / 1e6
        assert cost == pytest.approx(700e-6 * len(server.requests))
        assert 0 < cost <= 0.02


def test_a_server_that_counts_more_than_estimated_exceeds_by_the_calls_under_way(
    make: Make, server: ChatServer
) -> None:
    def dear(request: dict[str, Any], before: int) -> Response:
        prompt = request["messages"][0]["content"]
        return completion(written(prompt), usage=(len(prompt), request["max_tokens"]))  # a token for each character

    server.answer = dear
    limit, concurrency = 60_000, 3
    summary = make(max_tokens=limit, concurrency=concurrency)
    spent = summary.spent.prompt_tokens + summary.spent.completion_tokens
    largest = max(len(request["messages"][0]["content"]) + request["max_tokens"] for request in server.requests)
    assert summary.stopped_by == "the budget is spent"
    # Only the first calls, sent before the first count came back, were reserved too little.
    assert spent <= limit + concurrency * largest
    assert spent > limit - largest


def test_a_call_waits_for_what_others_give_back() -> None:
    async def story() -> list[str]:
        spent, events = Spent(), []
        budget = Budget(Sending(max_tokens=100), spent)
        first = await budget.reserve(40, 39)  # rounded up to 41

        async def second() -> None:
            reserved = await budget.reserve(40, 10)
            events.append("second")
            spent.add(40, 10)
            budget.release(reserved)

        waiting = asyncio.create_task(second())
        await asyncio.sleep(0.01)
        events.append("first")
        spent.add(20, 10)
        budget.release(first)
        await waiting
        assert await budget.reserve(20, 1) is None  # 80 are spent
        await budget.reserve(18, 1)
        return events

    assert asyncio.run(story()) == ["first", "second"]


def test_estimates_that_were_too_low_are_corrected() -> None:
    async def reserved() -> tuple[int, int]:
        budget = Budget(Sending(), Spent())
        budget.learn(estimated=100, counted=150)
        budget.learn(estimated=100, counted=50)
        return await budget.reserve(200, 7)

    assert asyncio.run(reserved()) == (300, 7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, "--max-tokens must be above 0, got 0"),
        ({"max_cost": -1.0, "price_in": 1, "price_out": 1}, "--max-cost must be above 0"),
        ({"max_cost": 5.0}, "--max-cost 5.0 needs --price-in and --price-out"),
    ],
)
def test_limits_that_cannot_be_held(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sending(**values)


def test_a_price_is_no_gift() -> None:
    with pytest.raises(ConfigError, match="--price-out must not be negative, got -1"):
        Sending(price_in=0, price_out=-1)
