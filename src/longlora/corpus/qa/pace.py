"""How fast calls go out, and how long to wait before one is repeated."""

import asyncio
import random
from dataclasses import dataclass

from longlora.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Waits between attempts: doubling from `first` up to `most` seconds, less a random part of up to a half."""

    first: float = 1.0
    most: float = 60.0
    attempts: int = 6
    """Of a call, the first one included."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"--attempts must be at least 1, got {self.attempts}")

    def seconds(self, attempt: int, rng: random.Random) -> float:
        """Wait after an attempt, counted from 1."""
        return min(self.most, self.first * 2.0 ** (attempt - 1)) * (0.5 + 0.5 * rng.random())


class Pace:
    """Spaces calls evenly so that no minute sees more requests, or more tokens, than allowed; None is no limit."""

    def __init__(self, *, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        limits = (("--requests-per-minute", requests_per_minute), ("--tokens-per-minute", tokens_per_minute))
        for option, value in limits:
            if value is not None and value <= 0:
                raise ConfigError(f"{option} must be above 0, got {value}")
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next = 0.0
        self._turn = asyncio.Lock()

    def minimum_seconds(self, num_requests: int, num_tokens: int) -> float:
        """Shortest time in which so much can go out."""
        return max(num_requests * self._per_request, num_tokens * self._per_token)

    def hold(self, seconds: float) -> None:
        """Let nothing go out for a while: the server asked for that."""
        self._next = max(self._next, asyncio.get_running_loop().time() + seconds)

    async def wait(self, num_tokens: int) -> None:
        """Wait for a call's turn; whoever came first goes first."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            while (now := loop.time()) < self._next:  # again, for it may have been put off meanwhile
                await asyncio.sleep(self._next - now)
            self._next = now + max(self._per_request, num_tokens * self._per_token)
