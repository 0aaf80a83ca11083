"""What is asked of a model, what comes back, and in which ways nothing does."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

Step = Literal["notes", "condense", "questions", "judge"]

CHAT_TOKENS = 64
"""Tokens left free in every prompt for what a chat template writes around it."""


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
    """What a model gave back; None is what it does not say."""

    text: str
    finish: str | None
    """Why it ended: `stop`, or `length` at the most tokens."""
    prompt_tokens: int | None
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
    """The model counted the tokens; otherwise they are estimated."""
    model: str
    time: str
    """When it came, UTC."""
    seconds: float
    """From sending to the reply, the last attempt alone."""


Ask = Callable[[Call], Awaitable[Reply | None]]
"""Gives a call's reply; with None there is none, now: its questions are left out, and asked again by the next run."""


class UnansweredError(Exception):
    """The model does not answer this call."""


class RefusedError(Exception):
    """The server takes no call of ours: no key, no such model."""
