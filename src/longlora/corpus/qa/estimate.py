"""What a set will take at most, found by making it without a model."""

import json
from collections import Counter
from dataclasses import dataclass, field

from longlora.corpus.qa.calls import CHAT_TOKENS, Call, CallJournal, Reply
from longlora.corpus.qa.chunks import TokenCounter
from longlora.corpus.qa.qa_settings import Sending, Spent

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
    tokens: Spent = field(default_factory=Spent)

    @property
    def num_calls(self) -> int:
        """All of them."""
        return self.calls.total()

    def describe(self, journal: CallJournal, sending: Sending) -> str:
        """Calls, tokens, price and time, each as the most that is to be expected."""
        steps = ", ".join(f"{count:,} {step}" for step, count in sorted(self.calls.items()))
        lines = [
            f"{self.num_documents:,} documents of {self.document_tokens:,} tokens; "
            f"{self.num_calls:,} calls to make ({steps}), {len(journal):,} in the journal",
            f"at most {self.tokens.prompt_tokens:,} tokens to read and {self.tokens.completion_tokens:,} to write",
        ]
        cost, spent = sending.cost(self.tokens), sending.cost(journal.spent)
        if cost is None or spent is None:
            lines.append("cost not known without --price-in and --price-out")
        else:
            lines.append(f"at most {cost:,.2f} at the given prices, after {spent:,.2f} so far")
        lines.append(self._time(journal.seconds_per_call, sending))
        if sending.max_tokens is not None:
            lines.append(f"stops before {sending.max_tokens:,} tokens are exceeded")
        if sending.max_cost is not None:
            lines.append(f"stops before {sending.max_cost:,.2f} is exceeded")
        return "\n".join(lines)

    def _time(self, seconds_per_call: float | None, sending: Sending) -> str:
        """How long it takes: at the speed of the calls so far, or as long as if all replies had their full length."""
        read, written, at_once = self.tokens.prompt_tokens, self.tokens.completion_tokens, sending.concurrency
        if seconds_per_call is None:
            working = written / ASSUMED_TOKENS_PER_SECOND
            basis = f"if each of {at_once} calls at once writes {ASSUMED_TOKENS_PER_SECOND:g} tokens in a second"
        else:
            working = self.num_calls * seconds_per_call
            basis = f"at {seconds_per_call:.1f} s a call so far, {at_once} at once"
        seconds = max(working / at_once, sending.minimum_seconds(self.num_calls, read + written))
        if seconds < 90:
            return f"about {seconds:.0f} s {basis}"
        return f"about {seconds / 60:,.0f} min {basis}" if seconds < 5400 else f"about {seconds / 3600:,.1f} h {basis}"


class Tally:
    """Answers with as many words as a model may write, and counts; what the journal has is taken from there."""

    def __init__(self, journal: CallJournal, counter: TokenCounter, *, questions: int) -> None:
        self.estimate = Estimate()
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
            self.estimate.calls[call.step] += 1
            self.estimate.tokens.add(self._counter.count(call.prompt) + CHAT_TOKENS, call.max_tokens)
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
