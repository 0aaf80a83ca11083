"""Ask questions about one document: make the calls, check the replies, and turn them into records.

A document that fits the window is one section, and all questions are asked over its text. A longer one is read section
by section: notes are taken on each and condensed until they fit. Questions about the whole document are asked over the
notes, questions about details over single sections.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

from longlora.corpus.qa import replies
from longlora.corpus.qa.calls import Ask, Call, Reply, Step
from longlora.corpus.qa.chunks import HEADING_TOKENS, SectionedDocument, TokenCounter, spread
from longlora.corpus.qa.prompt_files import PromptSet, Template
from longlora.corpus.qa.qa_settings import QASettings
from longlora.corpus.quotations import Passages

NO_QUOTATION = "no quotation (--quotes off keeps such pairs)"
Read = TypeVar("Read", bound=Sequence[Any])


@dataclass(frozen=True, kw_only=True)
class Material:
    """The text that a question is asked over."""

    text: str
    what: str  # describes it to the model
    scope: Literal["document", "notes", "section"]
    sections: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A pair with the results of its checks, or a reply without any pair."""

    pair: replies.Pair | None
    call: Call
    reply: Reply
    scope: str
    dropped: str | None = None  # the reason, if it does not become a record
    judgement: str | None = None  # the judge's reason for the verdict "supported"


@dataclass
class DocumentQA:
    """Asks about one document; the results do not depend on the order in which replies arrive."""

    document: SectionedDocument
    prompts: PromptSet
    settings: QASettings
    counter: TokenCounter
    room: int  # tokens of material that fit into every prompt
    ask_model: Ask
    num_unanswered: int = 0  # calls without a reply, not including calls that depend on them

    @cached_property
    def _passages(self) -> Passages:
        return Passages(self.document.text)

    async def candidates(self) -> list[Candidate]:
        """Make all calls that are possible now, and return the candidates in a fixed order."""
        whole, single = (
            [template for template in self.prompts.questions if template.over == over] for over in ("whole", "section")
        )
        chosen = spread(len(self.document.sections), self.settings.ask_sections)
        return await _joined(
            self._over_whole(whole),
            *(self._over_material(template, self._section(number)) for template in single for number in chosen),
        )

    def records(self, candidates: Sequence[Candidate], dropped: Counter[str]) -> Iterator[dict[str, Any]]:
        """Yield records in LongAlpaca's format, document with question and answer, plus provenance, for what passed.

        The reasons for everything else are counted in `dropped`.
        """
        questions = replies.QuestionDeduplicator(self.settings.duplicate_similarity)
        document = self.document
        for candidate in candidates:
            pair, call = candidate.pair, candidate.call
            if pair is None or candidate.dropped is not None:
                dropped[candidate.dropped or ""] += 1
            elif not questions.is_new(pair.question):
                dropped["duplicate question"] += 1
            else:
                yield {
                    "instruction": self.prompts.record.fill(
                        document=document.text.strip(), question=pair.question
                    ).strip(),
                    "output": pair.answer,
                    "provenance": {
                        "source": document.name,
                        "sha256": document.sha256,
                        "document_kind": document.kind,
                        "document_tokens": document.num_tokens,
                        "is_cut": document.is_cut,
                        "question_kind": call.template,
                        "asked_over": candidate.scope,
                        "sections": [list(section) for section in call.sections],
                        "quotes": list(pair.quotes),
                        "quotes_checked": self.settings.quotes,
                        "judgement": candidate.judgement,
                        "model": candidate.reply.model,
                        "prompt_sha256": call.template_sha256,
                        "seed": call.seed,
                        "call": call.key,
                        "time": candidate.reply.time,
                    },
                }

    async def _over_whole(self, templates: Sequence[Template]) -> list[Candidate]:
        if not templates:
            return []
        material = self._section(0) if len(self.document.sections) == 1 else await self._notes()
        if material is None:
            return []
        return await _joined(*(self._over_material(template, material) for template in templates))

    def _section(self, number: int) -> Material:
        sections, kind = self.document.sections, self.document.kind
        is_whole = len(sections) == 1
        part = f"section {number + 1} of the {len(sections)} sections that a {kind} was cut into"
        return Material(
            text=self.document.section(number),
            what=f"the complete text of a {kind}" if is_whole else part,
            scope="document" if is_whole else "section",
            sections=(sections[number],),
        )

    async def _notes(self) -> Material | None:
        """Take notes on every section, and condense neighbors until all fit one prompt; None if any is missing."""
        count = len(self.document.sections)
        parts = [f"section {number + 1} of the {count} sections" for number in range(count)]
        calls = [
            self._call("notes", self.prompts.notes, self._section(number), part=part)
            for number, part in enumerate(parts)
        ]
        notes = _all_or_none(await asyncio.gather(*map(self._text, calls)))
        tokens = self.counter.count
        while notes and len(notes) > 1 and tokens(_numbered(notes)) > self.room - HEADING_TOKENS * len(notes):
            notes = _all_or_none(await asyncio.gather(*map(self._condensed, self._groups(notes))))
        what = f"notes on all {count} sections of a {self.document.kind}, in order, with passages copied from it"
        return self._of_notes(notes, what) if notes is not None else None

    def _groups(self, notes: Sequence[str]) -> list[list[str]]:
        """Group neighbors, as many as fit but at least two, so that each round at least halves their number."""
        groups: list[list[str]] = [[]]
        room = self.room
        for note in notes:
            taken = self.counter.count(note) + HEADING_TOKENS
            room -= taken
            if room < 0 and len(groups[-1]) >= 2:
                groups.append([])
                room = self.room - taken
            groups[-1].append(note)
        return groups

    async def _condensed(self, group: list[str]) -> str | None:
        if len(group) == 1:
            return group[0]
        return await self._text(self._call("condense", self.prompts.condense, self._of_notes(group, "notes")))

    def _of_notes(self, notes: Sequence[str], what: str) -> Material:
        return Material(text=_numbered(notes), what=what, scope="notes", sections=self.document.sections)

    async def _text(self, call: Call) -> str | None:
        found = await self._read(call, replies.without_thoughts)
        return found[2] if found else None

    async def _over_material(self, template: Template, material: Material) -> list[Candidate]:
        """Ask for pairs, and check each."""
        count = self.settings.questions
        found = await self._read(self._call("questions", template, material, count=count), replies.read_pairs)
        if found is None:
            return []
        call, reply, pairs = found
        if not pairs:
            return [Candidate(pair=None, call=call, reply=reply, scope=material.scope, dropped="unreadable reply")]
        candidates = [
            Candidate(pair=pair, call=call, reply=reply, scope=material.scope, dropped=self._fault(pair))
            for pair in pairs[:count]
        ]
        return await self._judged(candidates, material) if self.settings.judge else candidates

    def _fault(self, pair: replies.Pair) -> str | None:
        is_proven = bool(pair.quotes) and self.settings.quotes != "off"
        if replies.is_refusal(pair.answer) or (replies.says_nothing(pair.answer) and not is_proven):
            return "refusal"
        if replies.speaks_of_a_part(pair.question):
            return "speaks of a part"
        if self.settings.quotes == "off":
            return None
        if not pair.quotes:
            return NO_QUOTATION
        passages, is_fuzzy, least = self._passages, self.settings.quotes == "fuzzy", self.settings.quote_similarity
        found = (passages.holds(quote) or (is_fuzzy and passages.similarity(quote) >= least) for quote in pair.quotes)
        return None if all(found) else "quotation not found"

    async def _judged(self, candidates: list[Candidate], material: Material) -> list[Candidate]:
        """Have the model read the material again and judge its answers, all pairs of a reply in one call."""
        passed = [(place, one.pair) for place, one in enumerate(candidates) if one.pair is not None and not one.dropped]
        if not passed:
            return candidates
        shown = [{"number": number, **asdict(pair)} for number, (_, pair) in enumerate(passed, start=1)]
        lines = "\n".join(json.dumps(pair, ensure_ascii=False) for pair in shown)
        reply = await self._ask(self._call("judge", self.prompts.judge, material, pairs=lines))
        if reply is None:
            return []
        verdicts = replies.read_verdicts(reply.text)
        for number, (place, _) in enumerate(passed, start=1):
            found = verdicts.get(number)
            if found is not None and found.verdict == "supported":
                candidates[place] = replace(candidates[place], judgement=found.reason)
            else:
                candidates[place] = replace(candidates[place], dropped="judged unsupported" if found else "no verdict")
        return candidates

    def _call(self, step: Step, template: Template, material: Material, **values: object) -> Call:
        is_notes = step in ("notes", "condense")
        return Call(
            step=step,
            model=self.settings.model,
            prompt=template.fill(material=material.text, what=material.what, **values),
            material=material.text,
            max_tokens=self.settings.notes_tokens if is_notes else self.settings.reply_tokens,
            temperature=0.0 if step == "judge" else self.settings.temperature,
            seed=self.settings.seed,
            template=template.name,
            template_sha256=template.sha256,
            document=self.document.sha256,
            sections=material.sections,
        )

    async def _read(self, call: Call, read: Callable[[str], Read]) -> tuple[Call, Reply, Read] | None:
        """Ask, and repeat with the next seed if the reply cannot be read; None if there is no reply."""
        last = call.seed + self.settings.tries - 1
        while (reply := await self._ask(call)) is not None:
            value = read(reply.text)
            if value or call.seed == last:
                return call, reply, value
            call = replace(call, seed=call.seed + 1)
        return None

    async def _ask(self, call: Call) -> Reply | None:
        reply = await self.ask_model(call)
        self.num_unanswered += reply is None
        return reply


async def _joined(*parts: Awaitable[list[Candidate]]) -> list[Candidate]:
    return [candidate for part in await asyncio.gather(*parts) for candidate in part]


def _all_or_none(notes: Sequence[str | None]) -> list[str] | None:
    """Return None unless all notes are there: part of a document is no basis for questions about the whole."""
    there = [note for note in notes if note is not None]
    return there if len(there) == len(notes) else None


def _numbered(notes: Sequence[str]) -> str:
    return "\n\n".join(f"[{number}]\n{one}" for number, one in enumerate(notes, start=1))
