"""Make a set of questions: estimate the cost, ask, write the records.

Read `make_questions` from top to bottom.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from longlora.corpus.qa.asking import Answerer, Caller
from longlora.corpus.qa.calls import Ask, Call, CallJournal, RefusedError, Reply
from longlora.corpus.qa.chunks import SectionedDocument, ShelfText, TokenCounter, material_room, read_in_sections
from longlora.corpus.qa.document_qa import DocumentQA
from longlora.corpus.qa.estimate import Estimate
from longlora.corpus.qa.prompt_files import PromptSet, prompts_digest
from longlora.corpus.qa.qa_settings import QASettings, Sending, Spent
from longlora.corpus.question_rows import write_rows
from longlora.data.sources import Source
from longlora.errors import ConfigError
from longlora.support.machine import thread_pool
from longlora.support.progress import progress_bar, shown

logger = logging.getLogger("longlora")

_INTERRUPTED = "interrupted"
_MOST_REASONS_SHOWN = 5
_THREADS = 4  # to resolve host names and run a local model; calls to a server need none

About = Callable[[SectionedDocument, Ask], DocumentQA]


@dataclass(kw_only=True)
class Summary:
    """The results of a run, and what remains to be done."""

    num_records: int = 0  # of all runs, in the file; if 0, no file is written
    num_documents: int = 0
    num_answered: int = 0  # calls of this run
    num_unanswered: int = 0  # calls still without a reply, not including calls that depend on them
    dropped: Counter[str] = field(default_factory=Counter)  # pairs and replies that did not become records, by reason
    repeated: list[str] = field(default_factory=list)  # documents with the same text as an earlier one
    failures: Counter[str] = field(default_factory=Counter)  # failed calls of this run, by reason
    stopped_by: str | None = None
    spent: Spent = field(default_factory=Spent)  # by all runs together
    cost: float | None = None  # of all tokens spent; None without prices

    @property
    def is_complete(self) -> bool:
        """Whether every call has its reply."""
        return self.num_unanswered == 0

    def to_dict(self) -> dict[str, Any]:
        """Return the summary for JSON."""
        values = vars(self) | vars(self.spent) | {"is_complete": self.is_complete}
        del values["spent"]
        return values

    def describe(self, out: Path) -> str:
        """Return lines of text: what was written, what was dropped and why, and what remains."""
        written = f", written to {out}" if self.num_records else "; nothing is written"
        lines = [f"{self.num_records:,} records from {self.num_documents:,} documents{written}"]
        if self.dropped:
            lines.append(f"dropped {self.dropped.total():,}: {_counts(self.dropped)}")
        if self.repeated:
            lines.append(f"{len(self.repeated):,} documents repeat earlier ones: {', '.join(self.repeated[:5])}")
        cost = "" if self.cost is None else f", {self.cost:,.2f} at the given prices"
        lines.append(f"{self.spent.prompt_tokens:,} tokens read and {self.spent.completion_tokens:,} written{cost}")
        if self.failures:
            lines.append(f"{self.failures.total():,} calls failed: {_counts(self.failures)}")
        if not self.is_complete:
            why = f"stopped, {self.stopped_by}" if self.stopped_by else "not complete"
            lines.append(
                f"{why}: at least {self.num_unanswered:,} calls have no reply; the same command asks them again "
                f"(journal: {journal_path(out)})"
            )
        return "\n".join(lines)


def journal_path(out: Path) -> Path:
    """Return the path of a set's journal."""
    return out.with_name(f"{out.name}.journal.jsonl")


def make_questions(
    source: Source[ShelfText],
    out: Path,
    *,
    settings: QASettings,
    prompts: dict[str, PromptSet],
    counter: TokenCounter,
    answerer: Answerer | None,
    sending: Sending,
    confirm: Callable[[Estimate], bool],
) -> Summary:
    """Ask all questions that have no reply yet, and write all records; without an answerer, only write them.

    All documents are held in memory.

    Raises:
        ConfigError: the journal has other settings, a window is too small, the server accepts no calls, or `out` is a
            file that this function did not write.
        DataError: there is nothing to read, or the journal is damaged.
        KeyboardInterrupt: after Ctrl-C, when the calls in progress have ended.
    """
    kinds = prompts if settings.kind == "auto" else {settings.kind: prompts[settings.kind]}
    room = {kind: material_room(one, settings, counter) for kind, one in kinds.items()}
    _check_out(out, is_written_only=answerer is None)

    def about(document: SectionedDocument, ask: Ask) -> DocumentQA:
        kind = document.kind
        return DocumentQA(document, prompts[kind], settings=settings, counter=counter, room=room[kind], ask_model=ask)

    header = asdict(settings) | {"prompts": prompts_digest(prompts)}
    with CallJournal(journal_path(out), header) as journal:
        summary = Summary(spent=journal.spent)
        texts = shown(source, "reading", total=source.num_documents)
        documents, summary.repeated = read_in_sections(texts, settings=settings, counter=counter, room=room)
        if answerer is not None:
            estimate = Estimate(documents, journal, counter, settings.questions)
            for document in shown(documents, "measuring", total=len(documents)):
                asyncio.run(about(document, estimate.ask).candidates())
            if estimate.num_calls and not confirm(estimate):
                summary.stopped_by = "not confirmed"
            elif estimate.num_calls:
                with progress_bar("asking", total=estimate.num_calls) as advance:
                    caller = Caller(
                        answerer,
                        journal=journal,
                        sending=sending,
                        counter=counter,
                        first_seed=settings.seed,
                        advance=advance,
                    )
                    asyncio.run(_ask(documents, about, caller, num_at_once=sending.concurrency))
                _note_end(caller, journal, summary)
        records = _records(shown(documents, "writing", total=len(documents)), about, journal, summary)
        if (first := next(records, None)) is not None:  # an empty set is useless, and must not replace an older one
            summary.num_records = write_rows(out, chain([first], records))
        summary.cost = sending.cost(journal.spent)
    return summary


async def _ask(documents: Sequence[SectionedDocument], about: About, caller: Caller, *, num_at_once: int) -> None:
    """Get replies to all calls into the journal, as far as possible.

    As many documents are processed concurrently as there may be calls in progress: each has at least one to send.
    """
    waiting = iter(documents)
    asyncio.get_running_loop().set_default_executor(thread_pool(_THREADS))

    async def work() -> None:
        for document in waiting:  # shared by all workers
            if caller.stopped_by is not None:
                return
            await about(document, caller.ask).candidates()  # only their effect on the journal matters

    workers = [asyncio.create_task(work()) for _ in range(num_at_once)]
    try:
        await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
    except asyncio.CancelledError:  # what `asyncio.run` makes of Ctrl-C; it lets a second one through
        logger.warning("interrupted: waiting for the calls in progress; press Ctrl-C again to abandon them")
        caller.stop(_INTERRUPTED)
        await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await caller.answerer.close()
    await asyncio.gather(*workers)  # raises what one of them has raised


def _note_end(caller: Caller, journal: CallJournal, summary: Summary) -> None:
    if isinstance(caller.stopped_by, RefusedError):
        raise ConfigError(
            f"the model cannot be asked: {caller.stopped_by}; check --base-url, --model and the key. "
            f"All replies so far are in {journal.path}"
        )
    if caller.stopped_by == _INTERRUPTED:
        raise KeyboardInterrupt
    summary.num_answered, summary.failures = caller.num_answered, caller.failures
    summary.stopped_by = caller.stopped_by


def _records(
    documents: Iterable[SectionedDocument], about: About, journal: CallJournal, summary: Summary
) -> Iterator[dict[str, Any]]:
    """Yield all records that the journal's replies allow, in the documents' order."""

    async def find(call: Call) -> Reply | None:
        return journal.find(call.key)

    for document in documents:
        qa = about(document, find)
        candidates = asyncio.run(qa.candidates())
        summary.num_documents += 1
        summary.num_unanswered += qa.num_unanswered
        yield from qa.records(candidates, summary.dropped)


def _check_out(out: Path, *, is_written_only: bool) -> None:
    has_journal = journal_path(out).exists()
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; give a file, .json or .jsonl")
    if out.exists() and not has_journal:
        raise ConfigError(f"{out} exists and has no journal next to it; choose another name or move it away")
    if is_written_only and not has_journal:
        raise ConfigError(
            f"there is no journal {journal_path(out)} to write from; leave out --from-journal to make one"
        )


def _counts(counts: Counter[str]) -> str:
    shown = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common(_MOST_REASONS_SHOWN))
    return shown + (", …" if len(counts) > _MOST_REASONS_SHOWN else "")
