"""What comes of a set: its records, and what a user is told of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longlora.corpus.qa.document_qa import Candidate, DocumentQA
from longlora.corpus.qa.grounding import QuestionDeduplicator
from longlora.corpus.qa.qa_settings import Settings, Spent

_MOST_REASONS_SHOWN = 5


@dataclass(kw_only=True)
class Summary:
    """What a run did, and what is left to do."""

    num_records: int = 0
    """Of all runs, in the file; with 0 no file is written."""
    num_documents: int = 0
    num_answered: int = 0
    """Calls of this run."""
    num_unanswered: int = 0
    """Calls that still have no reply, those not counted that wait for them."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Pairs and replies that are no records, by reason."""
    repeated: list[str] = field(default_factory=list)
    """Documents whose text came before under another name."""
    failures: Counter[str] = field(default_factory=Counter)
    """Calls of this run that came to nothing, by reason."""
    stopped_by: str | None = None
    spent: Spent = field(default_factory=Spent)
    """By all runs together."""
    cost: float | None = None
    """Of what was spent; None without prices."""

    @property
    def is_complete(self) -> bool:
        """Whether every call has its reply."""
        return self.num_unanswered == 0

    def to_dict(self) -> dict[str, Any]:
        """Return what a machine may want to read."""
        values = {name: value for name, value in vars(self).items() if name != "spent"}
        counts = {name: dict(getattr(self, name).most_common()) for name in ("dropped", "failures")}
        return values | counts | vars(self.spent) | {"is_complete": self.is_complete}

    def describe(self, out: Path, journal: Path) -> str:
        """What was written, what was dropped and why, what is left."""
        written = f", written to {out}" if self.num_records else "; nothing is written"
        lines = [f"{self.num_records:,} records from {self.num_documents:,} documents{written}"]
        if self.dropped:
            lines.append(f"dropped {self.dropped.total():,}: {_counts(self.dropped)}")
        if self.repeated:
            lines.append(f"{len(self.repeated):,} documents came twice: {', '.join(self.repeated[:5])}")
        cost = "" if self.cost is None else f", {self.cost:,.2f} at the given prices"
        lines.append(f"{self.spent.prompt_tokens:,} tokens read and {self.spent.completion_tokens:,} written{cost}")
        if self.failures:
            lines.append(f"{self.failures.total():,} calls came to nothing: {_counts(self.failures)}")
        if not self.is_complete:
            why = f"stopped, {self.stopped_by}" if self.stopped_by else "not complete"
            lines.append(
                f"{why}: at least {self.num_unanswered:,} calls have no reply; the same command asks them again "
                f"(journal: {journal})"
            )
        return "\n".join(lines)


def make_records(
    qa: DocumentQA, candidates: Sequence[Candidate], settings: Settings, dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Turn what passed into records of LongAlpaca's form: the whole document and the question, the answer, the origin.

    Reasons for what did not pass are counted in `dropped`.
    """
    questions = QuestionDeduplicator(settings.duplicate_similarity)
    text = qa.document.text.strip()
    for candidate in candidates:
        if candidate.pair is None or candidate.dropped is not None:
            dropped[candidate.dropped or ""] += 1
        elif not questions.is_new(candidate.pair.question):
            dropped["duplicate question"] += 1
        else:
            yield {
                "instruction": qa.prompts.record.fill(document=text, question=candidate.pair.question).strip(),
                "output": candidate.pair.answer,
                "provenance": {
                    "source": qa.document.name,
                    "sha256": qa.document.sha256,
                    "document_kind": qa.document.kind,
                    "document_tokens": qa.document.num_tokens,
                    "is_cut": qa.document.is_cut,
                    "question_kind": candidate.call.template,
                    "asked_over": candidate.scope,
                    "sections": [list(section) for section in candidate.call.sections],
                    "quotes": list(candidate.pair.quotes),
                    "quotes_checked": settings.quotes,
                    "judgement": candidate.judgement,
                    "model": candidate.reply.model,
                    "prompt_sha256": candidate.call.template_sha256,
                    "seed": candidate.call.seed,
                    "call": candidate.call.key,
                    "time": candidate.reply.time,
                },
            }


def _counts(counts: Counter[str]) -> str:
    shown = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common(_MOST_REASONS_SHOWN))
    return shown + (", …" if len(counts) > _MOST_REASONS_SHOWN else "")
