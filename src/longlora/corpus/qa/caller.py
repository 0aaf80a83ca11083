"""Sends calls that have no reply yet: so many at once, as fast as allowed, again after a fault, within the budget."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

from longlora.corpus.qa.budget import Budget, BudgetSpentError
from longlora.corpus.qa.calls import (
    Answer,
    Answerer,
    Call,
    PassingError,
    RefusedError,
    RejectedError,
    Reply,
    StoppedError,
    UnansweredError,
)
from longlora.corpus.qa.journal import Journal
from longlora.corpus.qa.pace import Backoff, Pace
from longlora.corpus.qa.sections import TokenCounter
from longlora.corpus.qa.settings import CHAT_TOKENS

logger = logging.getLogger("longlora")

T = TypeVar("T")

MOST_FAILURES_IN_A_ROW = 10
"""Calls that came to nothing, with none answered between them, after which the run stops."""


class Caller:
    """Answers calls out of the journal, or by the model and then into the journal."""

    def __init__(
        self,
        answerer: Answerer,
        *,
        journal: Journal,
        budget: Budget,
        pace: Pace,
        backoff: Backoff,
        counter: TokenCounter,
        concurrency: int,
        advance: Callable[[Call], None] = lambda call: None,
    ) -> None:
        self._answerer = answerer
        self._journal = journal
        self._budget = budget
        self._pace = pace
        self._backoff = backoff
        self._counter = counter
        self._places = asyncio.Semaphore(concurrency)
        self._advance = advance
        self._shared: dict[str, asyncio.Future[Reply]] = {}
        self._stop = asyncio.Event()
        self._rng = random.Random()  # of the waits alone: no reply depends on it
        self._failures_in_a_row = 0
        self.num_answered = 0
        self.failures: Counter[str] = Counter()
        self.stopped_by: str | Exception | None = None

    def stop(self, reason: str | Exception) -> None:
        """Send nothing more; what is under way is waited for. The first reason counts."""
        if self.stopped_by is None:
            self.stopped_by = reason
        self._stop.set()

    async def ask(self, call: Call) -> Reply:
        """Give a call's reply.

        Raises:
            UnansweredError: there is none; why is counted in `failures`.
            StoppedError: the run sends nothing more.
        """
        key = call.key
        if reply := self._journal.find(key):
            return reply
        if key not in self._shared:
            # Two sections may be the same, word for word: both wait for one call.
            self._shared[key] = asyncio.ensure_future(self._ask_anew(call))
            self._shared[key].add_done_callback(lambda _: self._shared.pop(key))
        return await asyncio.shield(self._shared[key])

    async def _ask_anew(self, call: Call) -> Reply:
        async with self._places:
            try:
                reply = await self._repeat(call)
            except RefusedError as error:
                self.stop(error)
                raise StoppedError from error
            except BudgetSpentError as error:
                self.stop("the budget is spent")
                raise StoppedError from error
            except (PassingError, RejectedError) as error:
                self._count_failure(error)
                raise UnansweredError(str(error)) from error
        self._failures_in_a_row = 0
        self.num_answered += 1
        self._advance(call)
        return reply

    async def _repeat(self, call: Call) -> Reply:
        for attempt in range(1, self._backoff.attempts + 1):
            try:
                return await self._attempt(call)
            except PassingError as error:
                if error.wait_seconds is not None:
                    self._pace.hold(error.wait_seconds)
                if attempt == self._backoff.attempts:
                    raise
                wait = 0.0 if error.wait_seconds == 0 else self._backoff.seconds(attempt, self._rng)
                logger.debug("attempt %d: %s; again in %.1f s", attempt, error, wait)
                await self._unless_stopped(asyncio.sleep(wait))
        raise AssertionError("there is at least one attempt")

    async def _attempt(self, call: Call) -> Reply:
        estimate = self._counter.count(call.prompt) + CHAT_TOKENS
        reserved = await self._unless_stopped(self._budget.reserve(estimate, call.max_tokens))
        try:
            await self._unless_stopped(self._pace.wait(sum(reserved)))
            self._journal.sent(call, *reserved)
            begin = time.perf_counter()
            try:
                answer = await self._answerer.answer(call)
            except (PassingError, RejectedError, RefusedError) as error:
                may_be_charged = isinstance(error, PassingError) and error.may_be_charged
                self._journal.failed(call, str(error), may_be_charged=may_be_charged)
                raise
            reply = self._reply(answer, estimate, time.perf_counter() - begin)
            self._journal.answered(call, reply)
            if answer.prompt_tokens is not None:
                self._budget.learn(estimated=estimate, counted=answer.prompt_tokens)
            return reply
        finally:
            await self._budget.release(reserved)

    def _reply(self, answer: Answer, estimate: int, seconds: float) -> Reply:
        counts = answer.prompt_tokens, answer.completion_tokens
        return Reply(
            text=answer.text,
            finish=answer.finish,
            prompt_tokens=estimate if counts[0] is None else counts[0],
            completion_tokens=self._counter.count(answer.text) if counts[1] is None else counts[1],
            is_counted=None not in counts,
            model=answer.model,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
        )

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for something that is no call, and give it up when the run stops."""
        if self._stop.is_set():
            work.close()
            raise StoppedError
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise StoppedError
            return task.result()
        finally:
            task.cancel()
            stop.cancel()

    def _count_failure(self, error: Exception) -> None:
        self.failures[str(error)] += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MOST_FAILURES_IN_A_ROW:
            self.stop(RefusedError(f"{self._failures_in_a_row} calls in a row came to nothing, the last with {error}"))
