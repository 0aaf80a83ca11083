"""Calls to a model, their replies, and the journal of both, from which a run resumes.

The journal's first line contains the settings. A call is recorded before it is sent, with the tokens reserved for it,
and again with its reply, which is on disk before it is used. A killed process leaves calls without an end: their
reservations count as spent.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from longlora.corpus.qa.qa_settings import Spent
from longlora.support.journal import Journal

Step = Literal["notes", "condense", "questions", "judge"]

CHAT_TOKENS = 64  # tokens left free in every prompt for the chat template

_JOURNAL_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Call:
    """One prompt with its parameters and purpose."""

    step: Step
    model: str
    prompt: str = field(repr=False)
    material: str = field(repr=False)  # the part of the prompt that comes from the document
    max_tokens: int
    temperature: float
    seed: int
    template: str
    template_sha256: str
    document: str  # digest of the document
    sections: tuple[tuple[int, int], ...]  # positions of its material in the document, in characters

    @property
    def key(self) -> str:
        """Digest of everything that determines the reply; the same call is never sent twice."""
        parts = [self.model, self.prompt, self.max_tokens, self.temperature, self.seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer; None stands for what it does not report."""

    text: str
    finish: str | None  # `stop`, or `length` if `max_tokens` was reached
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer as recorded in the journal; the defaults are those of a placeholder."""

    text: str
    finish: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_counted: bool = False  # token counts are the model's, not estimates
    model: str
    time: str = ""  # of arrival, UTC
    seconds: float = 0.0  # from sending to the reply, for the last attempt only


Ask = Callable[[Call], Awaitable[Reply | None]]
"""Returns a call's reply, or None if there is none now: its questions are left out, and the next run asks again."""


class UnansweredError(Exception):
    """The model does not answer this call."""


class RefusedError(Exception):
    """The server accepts none of our calls: no key, no such model."""


class CallJournal:
    """A journal of calls and replies, open in one process at a time.

    Raises:
        ConfigError: it belongs to a set with other settings, or another process has it open.
        DataError: the file was changed by something else and cannot be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.spent = Spent()
        self._replies: dict[str, Reply] = {}
        self.under_way: dict[str, tuple[int, int]] = {}  # tokens reserved for calls that were sent and have no end yet
        self._lines = Journal(path, {"journal_version": _JOURNAL_VERSION, **settings}, self._replay)
        for key in list(self.under_way):
            self._note_failed(key, True)

    def __len__(self) -> int:
        return len(self._replies)

    def find(self, key: str) -> Reply | None:
        """Return the reply to a call, or None."""
        return self._replies.get(key)

    @property
    def seconds_per_call(self) -> float | None:
        """Mean time from sending a call to its reply; None before the first."""
        return sum(reply.seconds for reply in self._replies.values()) / len(self) if self._replies else None

    def sent(self, call: Call, prompt_tokens: int, completion_tokens: int) -> None:
        """Record that a call is sent, with the most tokens it is expected to use."""
        self._write({"sent": call.key, "tokens": [prompt_tokens, completion_tokens]})

    def failed(self, call: Call, reason: str, *, may_be_charged: bool) -> None:
        """Record that a call failed."""
        self._write({"failed": call.key, "reason": reason, "may_be_charged": may_be_charged})

    def answered(self, call: Call, reply: Reply) -> None:
        """Record a reply; it is on disk when this returns."""
        about = ("step", "template", "template_sha256", "document", "sections", "seed")
        origin = {name: getattr(call, name) for name in about}
        self._write({"reply": call.key, **origin, **asdict(reply)}, is_synced=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def _write(self, line: dict[str, Any], *, is_synced: bool = False) -> None:
        self._lines.append(line, is_synced=is_synced)
        self._replay(line)

    def _replay(self, line: dict[str, Any]) -> None:
        if "sent" in line:
            prompt_tokens, completion_tokens = line["tokens"]
            self._note_failed(line["sent"], True)  # an earlier attempt was in progress when its process ended
            self.under_way[line["sent"]] = prompt_tokens, completion_tokens
        elif "failed" in line:
            self._note_failed(line["failed"], line["may_be_charged"])
        else:
            reply = Reply(**{name: line[name] for name in Reply.__dataclass_fields__})
            self.under_way.pop(line["reply"], None)
            self.spent.add(reply.prompt_tokens, reply.completion_tokens)
            self._replies[line["reply"]] = reply

    def _note_failed(self, key: str, may_be_charged: bool) -> None:
        reserved = self.under_way.pop(key, None)
        if reserved and may_be_charged:
            self.spent.add(*reserved)
