"""What a set will take at most, found by making it without a model."""

import json
from collections import Counter
from dataclasses import dataclass, field

from longlora.corpus.qa.budget import Prices
from longlora.corpus.qa.calls import Call, Reply
from longlora.corpus.qa.journal import Journal
from longlora.corpus.qa.pace import Pace
from longlora.corpus.qa.sections import TokenCounter
from longlora.corpus.qa.settings import CHAT_TOKENS

ASSUMED_TOKENS_PER_SECOND = 30.0
"""Tokens that one call is thought to write each second, before any call was timed."""


@dataclass
class Estimate:
    """Calls that have no reply yet, and the most tokens they take; replies are thought to be as long as allowed.

    Not counted: calls repeated after a fault or an unreadable reply.
    """

    calls: Counter[str] = field(default_factory=Counter)
    """By step."""

    num_documents: int = 0
    document_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def num_calls(self) -> int:
        """All of them."""
        return self.calls.total()

    def cost(self, prices: Prices | None) -> float | None:
        """Most that they cost; None without prices."""
        return prices.cost(self.prompt_tokens, self.completion_tokens) if prices else None

    def seconds(self, *, pace: Pace, concurrency: int, seconds_per_call: float | None) -> float:
        """How long they take: at the speed of the calls so far, or as long as if all replies had their full length."""
        if seconds_per_call is None:
            working = self.completion_tokens / ASSUMED_TOKENS_PER_SECOND
        else:
            working = self.num_calls * seconds_per_call
        allowed = pace.minimum_seconds(self.num_calls, self.prompt_tokens + self.completion_tokens)
        return max(working / concurrency, allowed)


class Tally:
    """Answers with as many words as a model may write, and counts; what the journal has is taken from there."""

    def __init__(self, estimate: Estimate, *, journal: Journal, counter: TokenCounter, questions: int) -> None:
        self._estimate = estimate
        self._journal = journal
        self._counter = counter
        self._questions = questions
        self._counted: set[str] = set()

    async def ask(self, call: Call) -> Reply:
        """Count a call."""
        key = call.key
        if reply := self._journal.find(key):
            return reply
        if key not in self._counted:
            self._counted.add(key)
            self._estimate.calls[call.step] += 1
            self._estimate.prompt_tokens += self._counter.count(call.prompt) + CHAT_TOKENS
            self._estimate.completion_tokens += call.max_tokens
        return Reply(
            text=self._text(call),
            finish="stop",
            prompt_tokens=0,
            completion_tokens=0,
            is_counted=False,
            model=call.model,
            time="",
            seconds=0.0,
        )

    def _text(self, call: Call) -> str:
        """Words of the material itself: they pass for notes, and for quotations that a judge is then asked about."""
        if call.step in ("notes", "condense"):
            starts = self._counter.starts(call.material)
            return call.material[: starts[call.max_tokens]] if len(starts) > call.max_tokens else call.material
        words = max(call.material.splitlines() or [""], key=len).split()
        quote = " ".join(words[:-1][:20])  # the last one may be cut
        answer = "word " * (call.max_tokens // self._questions)
        return json.dumps(
            [{"question": f"{call.template} {n}", "answer": answer, "quotes": [quote]} for n in range(self._questions)]
        )
