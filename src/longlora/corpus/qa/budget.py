"""What may be spent, reserved before a call is sent."""

import asyncio
from dataclasses import dataclass

from longlora.corpus.qa.journal import Spent
from longlora.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Price of a million tokens, in whatever currency.

    Raises:
        ConfigError: one is negative.
    """

    read: float
    written: float

    def __post_init__(self) -> None:
        for option, value in (("--price-in", self.read), ("--price-out", self.written)):
            if value < 0:
                raise ConfigError(f"{option} must not be negative, got {value}")

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of so many tokens."""
        return (prompt_tokens * self.read + completion_tokens * self.written) / 1e6


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a set may cost, all of its runs together.

    Raises:
        ConfigError: a limit is not above 0, or a cost is to be held and the prices are not known.
    """

    max_tokens: int | None = None
    max_cost: float | None = None
    prices: Prices | None = None

    def __post_init__(self) -> None:
        for option, value in (("--max-tokens", self.max_tokens), ("--max-cost", self.max_cost)):
            if value is not None and value <= 0:
                raise ConfigError(f"{option} must be above 0, got {value}")
        if self.max_cost is not None and self.prices is None:
            raise ConfigError(f"--max-cost {self.max_cost} can only be held with --price-in and --price-out")

    def allow(self, prompt_tokens: int, completion_tokens: int) -> bool:
        """Whether so much in all keeps within them."""
        if self.max_tokens is not None and prompt_tokens + completion_tokens > self.max_tokens:
            return False
        if self.max_cost is None or self.prices is None:
            return True
        return self.prices.cost(prompt_tokens, completion_tokens) <= self.max_cost


class BudgetSpentError(Exception):
    """What is left does not pay for the next call."""


class Budget:
    """Lets a call go out only if the most that it can take is left.

    What has been spent is the journal's count. A call that does not fit waits while others are under way, since they
    mostly take less than was reserved for them. Estimates are corrected by the largest ratio of counted to estimated
    prompt tokens so far: the limits can only be exceeded by what a server counts beyond that in the calls under way.
    """

    def __init__(self, limits: Limits, spent: Spent) -> None:
        self._limits = limits
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
        """Compare an estimate of a prompt with the server's count."""
        self._ratio = max(self._ratio, counted / max(1, estimated))

    def _fits(self, wanted: tuple[int, int]) -> bool:
        pending = [*self._reserved, wanted]
        return self._limits.allow(
            self._spent.prompt_tokens + sum(read for read, _ in pending),
            self._spent.completion_tokens + sum(written for _, written in pending),
        )
