"""Measure the quality of questions by rules: where their evidence is in the document, and what they give away.

Evidence is what a row's `provenance` quotes, else the passages of its document that its answer repeats. Whether an
answer follows from its evidence is not checked: that takes a reader.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import median
from typing import Any

from longlora.corpus.question_rows import Row
from longlora.corpus.quotations import GRAMMAR, SHORTEST_QUOTE, Passages, normalise
from longlora.data.row_readers import Finding

DEPTHS = 10  # equal parts of a document, from beginning to end, by which evidence is counted

_SAMPLE = 30  # rows shown on the page
_WORD = re.compile(r"\w+")
_ASKING = frozenset("who whom whose what which when where why how".split())


@dataclass(frozen=True)
class Evidence:
    """A passage that supports an answer."""

    text: str
    depth: float | None  # its relative position in the document, from 0 to 1; None if it is not there
    is_unique: bool  # it occurs only once in the document


@dataclass(frozen=True)
class Judged:
    """A row with its evidence."""

    name: str
    document: str
    kind: str
    question: str
    answer: str
    evidence: list[Evidence]


@dataclass
class Quality:
    """Measures of the rows that ask about a document."""

    num_questions: int = 0
    num_proven: int = 0  # rows with evidence, all of it found in their document
    num_found: int = 0  # passages found in their document
    num_unique: int = 0  # those that occur only once
    depths: list[int] = field(default_factory=lambda: [0] * DEPTHS)  # passages by the tenth in which they begin
    kinds: Counter[str] = field(default_factory=Counter)  # questions by their prompt's kind, else by question word
    documents: Counter[str] = field(default_factory=Counter)  # questions by document
    question_words: list[int] = field(default_factory=list)
    answer_words: list[int] = field(default_factory=list)
    not_found: Finding = field(default_factory=Finding)
    given_away: Finding = field(default_factory=Finding)
    num_same_words: int = 0  # questions that repeat an earlier one, about any document, word for word
    sample: list[Judged] = field(default_factory=list)
    _asked: set[str] = field(default_factory=set)

    def add(self, row: Row) -> None:
        """Measure a row; one that does not ask about a document is ignored."""
        if not row.document or not row.question:
            return
        passages = _passages(row.document)
        quotes = [quote for quote in row.provenance.get("quotes") or [] if isinstance(quote, str)]
        evidence = [_evidence(quote, passages) for quote in quotes or _repeated(row.answer, passages)]
        asking = (word for word in _WORD.findall(row.question.casefold()) if word in _ASKING)
        kind = str(row.provenance.get("question_kind") or next(asking, "other"))
        document = str(row.provenance.get("source") or row.document[:60])
        self.num_questions += 1
        self.kinds[kind] += 1
        self.documents[document] += 1
        self.question_words.append(len(row.question.split()))
        self.answer_words.append(len(row.answer.split()))
        found = [one for one in evidence if one.depth is not None]
        self.num_found += len(found)
        self.num_unique += sum(one.is_unique for one in found)
        self.num_proven += bool(found) and len(found) == len(evidence)
        for one in found:
            self.depths[min(DEPTHS - 1, int((one.depth or 0) * DEPTHS))] += 1
        if len(found) < len(evidence) and row.provenance.get("quotes_checked") != "fuzzy":
            self.not_found.add(row.name)
        if (said := _content(row.answer)) and said <= _content(row.question):
            self.given_away.add(row.name)
        asked = normalise(row.question)
        self.num_same_words += asked in self._asked
        self._asked.add(asked)
        if len(self.sample) < _SAMPLE:
            self.sample.append(Judged(row.name, document, kind, row.question, row.answer, evidence))

    def describe(self) -> list[str]:
        """Return the measures as lines of text; empty if no row asks about a document."""
        if not self.num_questions:
            return []
        thirds = {"in the first three tenths": (0, 3), "in the middle": (3, 7), "in the last three": (7, 10)}
        shares = {where: sum(self.depths[slice(*ends)]) / max(1, self.num_found) for where, ends in thirds.items()}
        spread = ", ".join(f"{share:.0%} {where}" for where, share in shares.items())
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.most_common(8))
        return [
            f"{self.num_questions:,} questions about {len(self.documents):,} documents: {kinds}",
            f"evidence: {self.num_proven / self.num_questions:.0%} of them have some, all of it in the document; "
            f"{self.num_unique / max(1, self.num_found):.0%} of {self.num_found:,} passages occur there only once",
            f"where it is: {spread}",
            f"{self.num_same_words:,} questions repeat an earlier one word for word; the median question has "
            f"{median(self.question_words):.0f} words, the median answer {median(self.answer_words):.0f}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the measures without the sample."""
        hidden = ("sample", "_asked", "question_words", "answer_words", "not_found", "given_away")
        return {name: value for name, value in vars(self).items() if name not in hidden} | {
            "not_found": self.not_found.count,
            "given_away": self.given_away.count,
        }


_passages = lru_cache(maxsize=4)(Passages)  # the rows about one document mostly follow one another


def _evidence(quote: str, passages: Passages) -> Evidence:
    place = passages.find(quote)
    if place < 0:
        return Evidence(quote, None, False)
    return Evidence(quote, place / max(1, len(passages)), passages.find(quote, place + 1) < 0)


def _repeated(answer: str, passages: Passages) -> list[str]:
    """Return the longest runs of words of an answer that also occur in its document."""
    words = answer.split()
    found = []
    begin = 0
    while begin <= len(words) - SHORTEST_QUOTE:
        end = begin + SHORTEST_QUOTE
        if not passages.holds(" ".join(words[begin:end])):
            begin += 1
            continue
        while end < len(words) and passages.holds(" ".join(words[begin : end + 1])):
            end += 1
        if end - begin > SHORTEST_QUOTE or end - begin == len(words):
            found.append(" ".join(words[begin:end]))
        begin = end
    return found


def _content(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(normalise(text))) - GRAMMAR
