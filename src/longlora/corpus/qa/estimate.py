"""Estimate the maximum cost of a set of questions, with a dry run that needs no model."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from longlora.corpus.qa.calls import CHAT_TOKENS, Call, CallJournal, Reply
from longlora.corpus.qa.chunks import SectionedDocument, TokenCounter
from longlora.corpus.qa.qa_settings import Sending, Spent

_ASSUMED_TOKENS_PER_SECOND = 30  # generated per call, until one has been timed


@dataclass
class Estimate:
    """Answers calls with placeholder replies of maximum length, and counts the calls without a reply in the journal.

    Calls repeated after an error or an unreadable reply are not counted.
    """

    documents: Sequence[SectionedDocument]
    journal: CallJournal
    counter: TokenCounter
    questions: int  # per call
    calls: Counter[str] = field(default_factory=Counter)  # by step
    tokens: Spent = field(default_factory=Spent)
    _counted: set[str] = field(default_factory=set)

    @property
    def num_calls(self) -> int:
        """Calls of all steps."""
        return self.calls.total()

    async def ask(self, call: Call) -> Reply:
        """Count a call, and return its reply from the journal or a placeholder."""
        key = call.key
        if reply := self.journal.find(key):
            return reply
        if key not in self._counted:
            self._counted.add(key)
            self.calls[call.step] += 1
            self.tokens.add(self.counter.count(call.prompt) + CHAT_TOKENS, call.max_tokens)
        return Reply(text=self._text(call), model=call.model)

    def _text(self, call: Call) -> str:
        """Return words of the material itself: they pass as notes, and as quotations that a judge is asked about."""
        if call.step in ("notes", "condense"):
            starts = self.counter.starts(call.material)
            return call.material[: starts[call.max_tokens]] if len(starts) > call.max_tokens else call.material
        words = max(call.material.splitlines() or [""], key=len).split()
        quote = " ".join(words[:-1][:20])  # the last word may be cut
        answer = "word " * (call.max_tokens // self.questions)
        return json.dumps(
            [{"question": f"{call.template} {n}", "answer": answer, "quotes": [quote]} for n in range(self.questions)]
        )

    def describe(self, sending: Sending) -> str:
        """Return the expected maxima of calls, tokens, price and time, as text."""
        steps = ", ".join(f"{count:,} {step}" for step, count in sorted(self.calls.items()))
        cost, spent = sending.cost(self.tokens), sending.cost(self.journal.spent)
        lines = [
            f"{len(self.documents):,} documents of {sum(it.num_tokens for it in self.documents):,} tokens; "
            f"{self.num_calls:,} calls to make ({steps}), {len(self.journal):,} in the journal",
            f"at most {self.tokens.prompt_tokens:,} tokens to read and {self.tokens.completion_tokens:,} to write",
            "cost unknown without --price-in and --price-out"
            if cost is None or spent is None
            else f"at most {cost:,.2f} at the given prices, after {spent:,.2f} so far",
            self._time(sending),
        ]
        if sending.max_tokens is not None:
            lines.append(f"stops before {sending.max_tokens:,} tokens are exceeded")
        if sending.max_cost is not None:
            lines.append(f"stops before {sending.max_cost:,.2f} is exceeded")
        return "\n".join(lines)

    def _time(self, sending: Sending) -> str:
        """Describe the time needed: at the speed of earlier calls, or with all replies at their maximum length."""
        read, written, at_once = self.tokens.prompt_tokens, self.tokens.completion_tokens, sending.concurrency
        if (seconds_per_call := self.journal.seconds_per_call) is None:
            working = written / _ASSUMED_TOKENS_PER_SECOND
            basis = f"if each of {at_once} calls at once writes {_ASSUMED_TOKENS_PER_SECOND} tokens in a second"
        else:
            working = self.num_calls * seconds_per_call
            basis = f"at {seconds_per_call:.1f} s a call so far, {at_once} at once"
        seconds = max(working / at_once, sending.minimum_seconds(self.num_calls, read + written))
        if seconds < 90:
            return f"about {seconds:.0f} s {basis}"
        return f"about {seconds / 60:,.0f} min {basis}" if seconds < 5400 else f"about {seconds / 3600:,.1f} h {basis}"
