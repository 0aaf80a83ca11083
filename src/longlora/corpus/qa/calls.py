"""What is asked of a model, what comes back, and in which ways nothing does."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

Step = Literal["notes", "condense", "questions", "judge"]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One prompt, and what it is for."""

    step: Step
    model: str
    prompt: str = field(repr=False)
    material: str = field(repr=False)
    """The part of the prompt that comes from the document."""

    max_tokens: int
    temperature: float
    seed: int
    template: str
    """Name of the prompt's template."""

    template_sha256: str
    document: str
    """Digest of the document that it is about."""

    sections: tuple[tuple[int, int], ...]
    """The parts of the document that its material comes from, in characters."""

    @property
    def key(self) -> str:
        """Digest of all that decides the reply; the same call is never sent twice."""
        parts = [self.model, self.prompt, self.max_tokens, self.temperature, self.seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model gave back, as far as it says."""

    text: str
    finish: str | None
    """Why it ended: `stop`, or `length` at the most tokens."""

    prompt_tokens: int | None
    """As the server counts; None where it does not."""

    completion_tokens: int | None
    model: str


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer as the journal keeps it."""

    text: str
    finish: str | None
    prompt_tokens: int
    completion_tokens: int
    is_counted: bool
    """The server counted the tokens; otherwise they are estimated."""

    model: str
    time: str
    """When it came, UTC."""

    seconds: float
    """From sending to the reply, the last attempt alone."""


Ask = Callable[[Call], Awaitable[Reply]]


class Answerer(Protocol):
    """A model that answers calls, near or far."""

    async def answer(self, call: Call) -> Answer:
        """Answer one call.

        Raises:
            PassingError: the same call may be answered later.
            RejectedError: this call will not be.
            RefusedError: no call will be.
        """

    async def close(self) -> None:
        """Give back what it holds."""


class PassingError(Exception):
    """A fault that may be gone at the next attempt."""

    def __init__(self, message: str, *, wait_seconds: float | None = None, may_be_charged: bool = False) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds
        """What the server asks to wait."""

        self.may_be_charged = may_be_charged
        """The model may have worked: nobody said that it did not."""


class RejectedError(Exception):
    """The server does not take this call."""


class RefusedError(Exception):
    """The server takes no call of ours: no key, no such model."""


class UnansweredError(Exception):
    """A call has no reply, now; its questions are left out, and asked again by the next run."""


class StoppedError(UnansweredError):
    """The run takes no further calls."""
