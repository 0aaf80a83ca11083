"""Send calls that have no reply yet: concurrently, within rate limits and the budget, and into the journal."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from longlora.corpus.qa.calls import CHAT_TOKENS, Answer, Call, CallJournal, RefusedError, Reply, UnansweredError
from longlora.corpus.qa.chunks import TokenCounter
from longlora.corpus.qa.qa_settings import Sending, Spent
from longlora.support.progress import Advance

logger = logging.getLogger("longlora")

_SECONDS_OF_SILENCE = 60.0  # before a notice that a call is still waiting

MOST_FAILURES_IN_A_ROW = 10  # consecutive failed calls after which the run stops


@dataclass
class Attempt:
    """The outcome of an attempt to get a call answered: lost, unless the sender sets something else."""

    answer: Answer | None = None
    failure: str = "no reply"
    may_be_charged: bool = True  # the model may have worked on it


Begin = Callable[[], AbstractAsyncContextManager[Attempt]]


class Answerer(Protocol):
    """A model that answers calls, local or remote."""

    async def answer(self, call: Call, begin: Begin) -> None:
        """Send a call, each time within `async with begin() as attempt`, until an attempt is answered.

        Raises:
            UnansweredError: this call fails.
            RefusedError: every call would fail.
        """

    async def close(self) -> None:
        """Release all resources."""


class RateLimiter:
    """A rate limiter that spaces calls evenly, so that no minute exceeds the limits on requests and tokens.

    A leaky bucket, as in aiolimiter, allows a whole minute's quota as a burst, and so twice the limit in one minute.
    """

    def __init__(self, sending: Sending) -> None:
        self._sending = sending
        self._next = 0.0
        self._turn = asyncio.Lock()

    async def wait(self, num_tokens: int) -> None:
        """Wait for a call's turn, first come, first served."""
        async with self._turn:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(self._next - loop.time())
            self._next = loop.time() + self._sending.minimum_seconds(1, num_tokens)


class Budget:
    """A budget that allows a call only if the most it can use is left.

    The journal counts what has been spent. A call that does not fit waits while others are in progress, since most use
    less than was reserved for them. Estimates are corrected by the largest ratio of counted to estimated prompt tokens
    so far, so the limits can only be exceeded by what the server counts beyond that for calls in progress.
    """

    def __init__(self, sending: Sending, spent: Spent) -> None:
        self._sending = sending
        self._spent = spent
        self._reserved: list[tuple[int, int]] = []
        self._released = asyncio.Event()
        self._ratio = 1.0

    async def reserve(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, int] | None:
        """Reserve the most that a call may use; None if it does not fit, and no call in progress will release any."""
        while not self._fits(wanted := (round(prompt_tokens * self._ratio + 0.5), completion_tokens)):
            if not self._reserved:
                return None
            self._released.clear()
            await self._released.wait()
        self._reserved.append(wanted)
        return wanted

    def release(self, reserved: tuple[int, int]) -> None:
        """Release a reservation, once the journal has counted what was spent."""
        self._reserved.remove(reserved)
        self._released.set()

    def learn(self, *, estimated: int, counted: int) -> None:
        """Correct future estimates by the model's own count of a prompt's tokens."""
        self._ratio = max(self._ratio, counted / max(1, estimated))

    def _fits(self, wanted: tuple[int, int]) -> bool:
        total = Spent(self._spent.prompt_tokens, self._spent.completion_tokens)
        for reserved in (*self._reserved, wanted):
            total.add(*reserved)
        return self._sending.allows(total)


class Caller:
    """Answers calls from the journal, or asks the model and adds the reply to the journal."""

    def __init__(
        self,
        answerer: Answerer,
        *,
        journal: CallJournal,
        sending: Sending,
        counter: TokenCounter,
        first_seed: int = 0,
        advance: Advance = lambda count, text: None,
    ) -> None:
        self.num_answered = 0
        self.failures: Counter[str] = Counter()
        self.stopped_by: str | RefusedError | None = None
        self.answerer = answerer
        self._journal = journal
        self._budget = Budget(sending, journal.spent)
        self._limiter = RateLimiter(sending)
        self._counter = counter
        self._places = asyncio.Semaphore(sending.concurrency)
        self._first_seed, self._advance = first_seed, advance
        self._asking: dict[str, asyncio.Task[Reply | None]] = {}
        self._failures_in_a_row = 0
        self._has_told_silence = False

    def stop(self, reason: str | RefusedError) -> None:
        """Send no more calls; those in progress still finish. The first reason is kept."""
        self.stopped_by = self.stopped_by or reason
        for key, task in self._asking.items():
            if key not in self._journal.under_way:  # waiting for its turn, the budget, or another attempt
                task.cancel()

    async def ask(self, call: Call) -> Reply | None:
        """Return a call's reply; if there is none, count the reason in `failures` unless the run has stopped."""
        key = call.key
        if (reply := self._journal.find(key)) or self.stopped_by is not None:
            return reply
        if key not in self._asking:
            # Two sections may be identical: both wait for the same call.
            self._asking[key] = asyncio.create_task(self._ask_anew(call))
            self._asking[key].add_done_callback(lambda _: self._asking.pop(key))
        asked = self._asking[key]
        await asyncio.wait([asked])
        return None if asked.cancelled() else asked.result()

    async def _ask_anew(self, call: Call) -> Reply | None:
        try:
            async with self._places:
                estimate = self._counter.count(call.prompt) + CHAT_TOKENS
                await self.answerer.answer(call, partial(self._attempt, call, estimate))
        except RefusedError as error:
            self.stop(error)
            return None
        except UnansweredError as error:
            self.failures[str(error)] += 1
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= MOST_FAILURES_IN_A_ROW:
                in_a_row = f"{self._failures_in_a_row} calls in a row failed, the last with {error}"
                self.stop(RefusedError(in_a_row))
            return None
        self._failures_in_a_row = 0
        self.num_answered += 1
        spent = self._journal.spent
        is_first = call.seed == self._first_seed  # a repeated call has been counted before
        self._advance(int(is_first), f"{spent.prompt_tokens:,} tokens in, {spent.completion_tokens:,} out")
        return self._journal.find(call.key)

    @asynccontextmanager
    async def _attempt(self, call: Call, estimate: int) -> AsyncIterator[Attempt]:
        """Reserve the most that an attempt can use, wait for its turn, and record its start and its end.

        A stopped run cancels the task, as the openai client would take any other exception for a connection error.
        """
        reserved = await self._budget.reserve(estimate, call.max_tokens)
        if reserved is None:
            self.stop("the budget is spent")
            raise asyncio.CancelledError
        attempt = Attempt()
        try:
            await self._limiter.wait(sum(reserved))
            self._journal.sent(call, *reserved)
            begun = time.perf_counter()
            notice = asyncio.get_running_loop().call_later(_SECONDS_OF_SILENCE, self._tell_silence)
            try:
                yield attempt
            except UnansweredError as error:
                attempt.failure = str(error)
                raise
            finally:
                notice.cancel()
                self._write_down(call, attempt, estimate, seconds=time.perf_counter() - begun)
        finally:
            self._budget.release(reserved)
            if attempt.answer is None and self.stopped_by is not None:
                raise asyncio.CancelledError

    def _tell_silence(self) -> None:
        if not self._has_told_silence:
            logger.warning("no reply for %.0f s; the run waits for the model", _SECONDS_OF_SILENCE)
        self._has_told_silence = True

    def _write_down(self, call: Call, attempt: Attempt, estimate: int, *, seconds: float) -> None:
        """Record the end of an attempt; token counts that the model does not report are estimated."""
        if (answer := attempt.answer) is None:
            self._journal.failed(call, attempt.failure, may_be_charged=attempt.may_be_charged)
            return
        read, written = answer.prompt_tokens, answer.completion_tokens
        reply = Reply(
            text=answer.text,
            finish=answer.finish,
            prompt_tokens=estimate if read is None else read,
            completion_tokens=self._counter.count(answer.text) if written is None else written,
            is_counted=None not in (read, written),
            model=answer.model,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
        )
        self._journal.answered(call, reply)
        if read is not None:
            self._budget.learn(estimated=estimate, counted=read)
