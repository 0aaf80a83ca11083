"""Gets replies to calls that have none: so many at once, as fast as allowed, within the budget, into the journal."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from longlora.corpus.qa.call_journal import CallJournal
from longlora.corpus.qa.calls import CHAT_TOKENS, Answer, Call, RefusedError, Reply, UnansweredError
from longlora.corpus.qa.chunks import TokenCounter
from longlora.corpus.qa.sending import Budget, BudgetSpentError, RateLimiter, Sending

MOST_FAILURES_IN_A_ROW = 10
"""Calls that came to nothing, with none answered between them, after which the run stops."""


class Answerer(Protocol):
    """A model that answers calls, near or far."""

    async def answer(self, call: Call, attempt: "Attempt") -> Answer:
        """Answer one call, which goes out once after each `attempt.begin()`.

        Raises:
            UnansweredError: this call is not answered.
            RefusedError: no call will be.
        """

    async def close(self) -> None:
        """Give back what it holds."""


class Caller:
    """Answers calls out of the journal, or by the model and then into the journal."""

    def __init__(
        self,
        answerer: Answerer,
        *,
        journal: CallJournal,
        sending: Sending,
        counter: TokenCounter,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self.journal = journal
        self.budget = Budget(sending, journal.spent)
        self.limiter = RateLimiter(sending)
        self.counter = counter
        self.idle: set[asyncio.Task[Any]] = set()
        """Tasks whose call is not under way: it waits for its turn, the budget, or another attempt."""
        self._answerer = answerer
        self._places = asyncio.Semaphore(sending.concurrency)
        self._advance = advance
        self._shared: dict[str, asyncio.Future[Reply | None]] = {}
        self._failures_in_a_row = 0
        self.num_answered = 0
        self.failures: Counter[str] = Counter()
        self.stopped_by: str | Exception | None = None

    def stop(self, reason: str | Exception) -> None:
        """Send nothing more; what is under way is waited for. The first reason counts."""
        self.stopped_by = self.stopped_by or reason
        for task in self.idle:
            task.cancel()

    async def ask(self, call: Call) -> Reply | None:
        """Give a call's reply; where there is none, the reason is counted in `failures` unless the run has stopped."""
        key = call.key
        if (reply := self.journal.find(key)) or self.stopped_by is not None:
            return reply
        if key not in self._shared:
            # Two sections may be the same, word for word: both wait for one call.
            self._shared[key] = asyncio.ensure_future(self._ask_anew(call))
            self._shared[key].add_done_callback(lambda _: self._shared.pop(key))
        asked = self._shared[key]
        await asyncio.wait([asked])
        return None if asked.cancelled() else asked.result()

    async def _ask_anew(self, call: Call) -> Reply | None:
        attempt = Attempt(call, self)
        try:
            async with self._places:
                reply = await attempt.succeed(await self._answerer.answer(call, attempt))
        except (RefusedError, UnansweredError) as error:
            await attempt.close(str(error))
            self._count_failure(error)
            return None
        finally:
            self.idle.discard(attempt.task)
        self._failures_in_a_row = 0
        self.num_answered += 1
        self._advance()
        return reply

    def _count_failure(self, error: Exception) -> None:
        if isinstance(error, RefusedError):
            self.stop(error)
            return
        self.failures[str(error)] += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MOST_FAILURES_IN_A_ROW:
            self.stop(RefusedError(f"{self._failures_in_a_row} calls in a row came to nothing, the last with {error}"))


class Attempt:
    """The attempts of one call: each is paid for and written down before it goes out.

    Whoever sends the call says in `may_be_charged` whether the model may have worked on it.
    """

    def __init__(self, call: Call, caller: Caller) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.may_be_charged = False
        self._call, self._caller = call, caller
        self._estimate = caller.counter.count(call.prompt) + CHAT_TOKENS
        self._reserved: tuple[int, int] | None = None
        self._begun = 0.0
        caller.idle.add(task)

    async def begin(self) -> None:
        """Reserve the most that it can take, wait for its turn, and write it down."""
        await self.end("no reply")  # a lost connection is told by no one
        caller = self._caller
        try:
            reserved = await caller.budget.reserve(self._estimate, self._call.max_tokens)
        except BudgetSpentError:
            # A client takes an exception for a fault of the connection and tries again; a cancelled task it leaves.
            caller.stop("the budget is spent")
            await asyncio.sleep(0)
            raise
        await caller.limiter.wait(sum(reserved))
        caller.journal.sent(self._call, *reserved)
        caller.idle.discard(self.task)
        self._reserved = reserved
        self._begun = time.perf_counter()

    async def end(self, reason: str) -> None:
        """Write down that it came to nothing, and wait for the next one, if the run goes on."""
        await self.close(reason)
        self._caller.idle.add(self.task)
        if self._caller.stopped_by is not None:
            self.task.cancel()

    async def close(self, reason: str) -> None:
        """Write down that it came to nothing; without an attempt under way there is nothing to say."""
        if self._reserved is not None:
            self._caller.journal.failed(self._call, reason, may_be_charged=self.may_be_charged)
            await self._release()
        self._caller.idle.discard(self.task)

    async def succeed(self, answer: Answer) -> Reply:
        """Write the answer down; what the model did not count is estimated."""
        caller, read, written = self._caller, answer.prompt_tokens, answer.completion_tokens
        reply = Reply(
            text=answer.text,
            finish=answer.finish,
            prompt_tokens=self._estimate if read is None else read,
            completion_tokens=caller.counter.count(answer.text) if written is None else written,
            is_counted=None not in (read, written),
            model=answer.model,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - self._begun, 3),
        )
        caller.journal.answered(self._call, reply)
        if read is not None:
            caller.budget.learn(estimated=self._estimate, counted=read)
        await self._release()
        return reply

    async def _release(self) -> None:
        assert self._reserved is not None, "begin() comes first"
        reserved, self._reserved = self._reserved, None
        await self._caller.budget.release(reserved)
