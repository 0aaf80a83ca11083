"""The questions about one document: which calls it takes, and what becomes of their replies.

A document that fits the window is one section, and everything is asked over its text. A longer one is read section by
section: notes are taken on each, put together until they fit, and what concerns the whole is asked over the notes; what
concerns details is asked over single sections.
"""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from longlora.corpus.qa.calls import Ask, Call, Reply, Step, UnansweredError
from longlora.corpus.qa.documents import Document
from longlora.corpus.qa.grounding import Passages
from longlora.corpus.qa.replies import Pair, is_refusal, read_pairs, read_verdicts, speaks_of_a_part, without_thoughts
from longlora.corpus.qa.room import HEADING_TOKENS
from longlora.corpus.qa.sections import TokenCounter, spread
from longlora.corpus.qa.settings import Settings
from longlora.corpus.qa.templates import PromptSet, Template

Scope = Literal["document", "notes", "section"]

UNREADABLE = "unreadable reply"
REFUSAL = "refusal"
OF_A_PART = "speaks of a part"
NO_QUOTE = "no quotation"
NOT_FOUND = "quotation not found"
NOT_SUPPORTED = "judged unsupported"
NO_VERDICT = "no verdict"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a question is asked over."""

    text: str
    what: str
    """Says it to the model."""

    scope: Scope
    sections: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A pair and what was found about it, or a reply without any."""

    pair: Pair | None
    call: Call
    reply: Reply
    scope: Scope
    dropped: str | None = None
    """Why it is no record."""

    verdict: str | None = None
    """The judge's reason for calling it supported."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All candidates of a document in a fixed order, and how many calls had no reply."""

    candidates: list[Candidate]
    num_unanswered: int


class Work:
    """Asks about one document; the order of the replies in time changes nothing."""

    def __init__(
        self,
        document: Document,
        prompts: PromptSet,
        *,
        settings: Settings,
        counter: TokenCounter,
        room: int,
        ask: Ask,
    ) -> None:
        self._document = document
        self._prompts = prompts
        self._settings = settings
        self._counter = counter
        self._room = room
        self._ask_model = ask
        self._passages: Passages | None = None
        self._num_unanswered = 0

    async def outcome(self) -> Outcome:
        """Do all that can be done now."""
        whole = [template for template in self._prompts.questions if template.over == "whole"]
        single = [template for template in self._prompts.questions if template.over == "section"]
        chosen = spread(len(self._document.sections), self._settings.ask_sections)
        parts = [
            self._over_whole(whole),
            *(self._over_material(template, self._section(number)) for template in single for number in chosen),
        ]
        found = await _together(parts)
        candidates = [candidate for part in found if isinstance(part, list) for candidate in part]
        return Outcome(candidates=candidates, num_unanswered=self._num_unanswered)

    async def _over_whole(self, templates: Sequence[Template]) -> list[Candidate]:
        if not templates:
            return []
        material = self._section(0) if len(self._document.sections) == 1 else await self._notes()
        found = await _together([self._over_material(template, material) for template in templates])
        return [candidate for part in found if isinstance(part, list) for candidate in part]

    def _section(self, number: int) -> Material:
        sections = self._document.sections
        kind = self._document.kind
        what = (
            f"the complete text of a {kind}"
            if len(sections) == 1
            else f"section {number + 1} of the {len(sections)} sections that a {kind} was cut into"
        )
        return Material(
            text=self._document.section(number),
            what=what,
            scope="document" if len(sections) == 1 else "section",
            sections=(sections[number],),
        )

    async def _notes(self) -> Material:
        """Take notes on every section, and condense neighbours until all fit one prompt."""
        sections = self._document.sections
        template = self._prompts.notes
        calls = [
            self._call(
                "notes", template, self._section(number), part=f"section {number + 1} of the {len(sections)} sections"
            )
            for number in range(len(sections))
        ]
        notes = _all_of(await _together([self._text(call) for call in calls]))
        while len(notes) > 1 and self._counter.count(_joined(notes)) + HEADING_TOKENS * len(notes) > self._room:
            notes = await self._condense(notes)
        kind = self._document.kind
        what = f"notes on all {len(sections)} sections of a {kind}, in order, with passages copied from it"
        return self._of_notes(notes, what)

    async def _notes_on(self, number: int) -> str:
        part = f"section {number + 1} of the {len(self._document.sections)} sections"
        return await self._text(self._call("notes", self._prompts.notes, self._section(number), part=part))

    async def _condense(self, notes: list[str]) -> list[str]:
        """Put neighbours together: as many as fit, two at least, so that every round leaves at most half."""
        groups: list[list[str]] = [[]]
        room = self._room
        for note in notes:
            room -= self._counter.count(note) + HEADING_TOKENS
            if room < 0 and len(groups[-1]) >= 2:
                groups.append([])
                room = self._room - self._counter.count(note) - HEADING_TOKENS
            groups[-1].append(note)
        return _all_of(await _together([self._condensed(group) for group in groups]))

    async def _condensed(self, group: list[str]) -> str:
        if len(group) == 1:
            return group[0]
        return await self._text(self._call("condense", self._prompts.condense, self._of_notes(group, "notes")))

    def _of_notes(self, notes: Sequence[str], what: str) -> Material:
        return Material(text=_joined(notes), what=what, scope="notes", sections=self._document.sections)

    async def _over_material(self, template: Template, material: Material) -> list[Candidate]:
        """Ask for pairs, again where a reply holds none, and check each."""
        first = self._call("questions", template, material, what=material.what, count=self._settings.questions)
        for number in range(self._settings.tries):
            call = replace(first, seed=self._settings.seed + number)
            reply = await self._ask(call)
            if pairs := read_pairs(reply.text):
                break
        else:
            return [Candidate(pair=None, call=call, reply=reply, scope=material.scope, dropped=UNREADABLE)]
        candidates = [
            Candidate(pair=pair, call=call, reply=reply, scope=material.scope, dropped=self._fault(pair))
            for pair in pairs[: self._settings.questions]
        ]
        return await self._judged(candidates, material) if self._settings.judge else candidates

    def _fault(self, pair: Pair) -> str | None:
        if is_refusal(pair.answer):
            return REFUSAL
        if speaks_of_a_part(pair.question):
            return OF_A_PART
        if self._settings.quotes == "off":
            return None
        if not pair.quotes:
            return NO_QUOTE
        self._passages = self._passages or Passages(self._document.text)
        is_fuzzy, needed = self._settings.quotes == "fuzzy", self._settings.quote_similarity
        for quote in pair.quotes:
            if not self._passages.holds(quote) and not (is_fuzzy and self._passages.similarity(quote) >= needed):
                return NOT_FOUND
        return None

    async def _judged(self, candidates: list[Candidate], material: Material) -> list[Candidate]:
        waiting = [candidate for candidate in candidates if candidate.dropped is None]
        if not waiting:
            return candidates
        template = self._prompts.judge
        pairs = "\n".join(_as_judged(number, one.pair) for number, one in enumerate(waiting, start=1) if one.pair)
        call = self._call("judge", template, material, what=material.what, pairs=pairs)
        verdicts = read_verdicts((await self._ask(call)).text)
        judged = []
        for candidate in candidates:
            if candidate.dropped is None:
                verdict, reason = verdicts.get(waiting.index(candidate) + 1, ("", ""))
                dropped = None if verdict == "supported" else NOT_SUPPORTED if verdict else NO_VERDICT
                candidate = replace(candidate, dropped=dropped, verdict=None if dropped else reason)
            judged.append(candidate)
        return judged

    def _call(self, step: Step, template: Template, material: Material, **values: object) -> Call:
        is_notes = step in ("notes", "condense")
        return Call(
            step=step,
            model=self._settings.model,
            prompt=template.fill(material=material.text, **values),
            material=material.text,
            max_tokens=self._settings.notes_tokens if is_notes else self._settings.reply_tokens,
            temperature=0.0 if step == "judge" else self._settings.temperature,
            seed=self._settings.seed,
            template=template.name,
            template_sha256=template.sha256,
            document=self._document.sha256,
            sections=material.sections,
        )

    async def _text(self, call: Call) -> str:
        """Ask for notes, again where the reply is empty."""
        for number in range(self._settings.tries):
            reply = await self._ask(replace(call, seed=call.seed + number))
            if text := without_thoughts(reply.text):
                return text
        return ""

    async def _ask(self, call: Call) -> Reply:
        try:
            return await self._ask_model(call)
        except UnansweredError as error:
            self._num_unanswered += 1
            raise error


async def _together(parts: Sequence[Coroutine[Any, Any, T]]) -> list[T | UnansweredError]:
    """Wait for all, whatever becomes of some: a call under way is paid for, and its reply is kept."""
    found: list[T | UnansweredError] = []
    for part in await asyncio.gather(*parts, return_exceptions=True):
        if isinstance(part, BaseException) and not isinstance(part, UnansweredError):
            raise part
        found.append(part)
    return found


def _all_of(found: Sequence[T | UnansweredError]) -> list[T]:
    """Raise what is missing: the whole cannot be asked about over a part. It was counted with its call."""
    complete: list[T] = []
    for one in found:
        if isinstance(one, UnansweredError):
            raise one
        complete.append(one)
    return complete


def _joined(notes: Sequence[str]) -> str:
    return "\n\n".join(f"[{number}]\n{one}" for number, one in enumerate(notes, start=1))


def _as_judged(number: int, pair: Pair) -> str:
    shown = {"number": number, "question": pair.question, "answer": pair.answer, "quotes": list(pair.quotes)}
    return json.dumps(shown, ensure_ascii=False)
