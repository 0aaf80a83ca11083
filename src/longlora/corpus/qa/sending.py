"""How calls may be sent: how many at once and how fast, and what may be spent, reserved before a call goes out."""

import asyncio
from dataclasses import dataclass

from longlora.corpus.qa.qa_settings import require
from longlora.errors import ConfigError


@dataclass
class Spent:
    """Tokens that were read and written by the model."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count some more."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens


@dataclass(frozen=True, kw_only=True)
class Sending:
    """How calls are sent; nothing here changes a record, and all of it may differ from run to run.

    Raises:
        ConfigError: a value is out of range, or a cost is to be held and the prices are not known.
    """

    max_tokens: int | None = None
    """Of all runs of a set together, as `max_cost`."""
    max_cost: float | None = None
    price_in: float | None = None
    """Of a million tokens read, in whatever currency."""
    price_out: float | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int = 8
    """Calls under way at once."""

    def __post_init__(self) -> None:
        require("be above 0", max_tokens=self.max_tokens, max_cost=self.max_cost)
        require("be above 0", requests_per_minute=self.requests_per_minute, tokens_per_minute=self.tokens_per_minute)
        require("not be negative", price_in=self.price_in, price_out=self.price_out)
        require("be at least 1", concurrency=self.concurrency)
        if (self.price_in is None) != (self.price_out is None):
            raise ConfigError("--price-in and --price-out come together; 0 is a price")
        if self.max_cost is not None and self.price_in is None:
            raise ConfigError(f"--max-cost {self.max_cost} can only be held with --price-in and --price-out")

    def cost(self, tokens: Spent) -> float | None:
        """Price of so many tokens; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens.prompt_tokens * self.price_in + tokens.completion_tokens * self.price_out) / 1e6

    def allows(self, tokens: Spent) -> bool:
        """Whether so much in all keeps within the limits."""
        if self.max_tokens is not None and tokens.prompt_tokens + tokens.completion_tokens > self.max_tokens:
            return False
        return self.max_cost is None or (self.cost(tokens) or 0) <= self.max_cost

    def minimum_seconds(self, num_requests: int, num_tokens: int) -> float:
        """Shortest time in which so much can go out."""
        by_request = 60 * num_requests / self.requests_per_minute if self.requests_per_minute else 0.0
        by_token = 60 * num_tokens / self.tokens_per_minute if self.tokens_per_minute else 0.0
        return max(by_request, by_token)


class RateLimiter:
    """Spaces calls evenly, so that no minute sees more of them, or of their tokens, than allowed.

    A leaky bucket, as in aiolimiter, would let a whole minute's share out at once, and twice the limit in one minute.
    """

    def __init__(self, sending: Sending) -> None:
        self._sending = sending
        self._next = 0.0
        self._turn = asyncio.Lock()

    async def wait(self, num_tokens: int) -> None:
        """Wait for a call's turn; whoever came first goes first."""
        async with self._turn:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(self._next - loop.time())
            self._next = loop.time() + self._sending.minimum_seconds(1, num_tokens)


class BudgetSpentError(Exception):
    """What is left does not pay for the next call."""


class Budget:
    """Lets a call go out only if the most that it can take is left.

    What has been spent is the journal's count. A call that does not fit waits while others are under way, since they
    mostly take less than was reserved for them. Estimates are corrected by the largest ratio of counted to estimated
    prompt tokens so far: the limits can only be exceeded by what a server counts beyond that in the calls under way.
    """

    def __init__(self, sending: Sending, spent: Spent) -> None:
        self._sending = sending
        self._spent = spent
        self._reserved: list[tuple[int, int]] = []
        self._changed = asyncio.Condition()
        self._ratio = 1.0

    async def reserve(self, prompt_tokens: int, completion_tokens: int) -> tuple[int, int]:
        """Set aside what a call may take, and return that.

        Raises:
            BudgetSpentError: it does not fit, and nothing under way will give anything back.
        """
        async with self._changed:
            while True:
                wanted = round(prompt_tokens * self._ratio + 0.5), completion_tokens
                if self._fits(wanted):
                    self._reserved.append(wanted)
                    return wanted
                if not self._reserved:
                    raise BudgetSpentError
                await self._changed.wait()

    async def release(self, reserved: tuple[int, int]) -> None:
        """Give a reservation back, once the journal has counted what was spent."""
        async with self._changed:
            self._reserved.remove(reserved)
            self._changed.notify_all()

    def learn(self, *, estimated: int, counted: int) -> None:
        """Compare an estimate of a prompt with the model's count."""
        self._ratio = max(self._ratio, counted / max(1, estimated))

    def _fits(self, wanted: tuple[int, int]) -> bool:
        total = Spent(self._spent.prompt_tokens, self._spent.completion_tokens)
        for reserved in (*self._reserved, wanted):
            total.add(*reserved)
        return self._sending.allows(total)
