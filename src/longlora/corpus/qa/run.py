"""How a set of questions is made: count what it takes, ask, write.

Read `make_questions` from top to bottom.
"""

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longlora.corpus.qa.budget import Budget, Limits
from longlora.corpus.qa.caller import Caller
from longlora.corpus.qa.calls import Answerer, Ask, Call, RefusedError, Reply, UnansweredError
from longlora.corpus.qa.documents import Document, Documents
from longlora.corpus.qa.estimate import Estimate, Tally
from longlora.corpus.qa.journal import Journal, Spent
from longlora.corpus.qa.pace import Backoff, Pace
from longlora.corpus.qa.progress import each_warning_once, progress_bar, shown
from longlora.corpus.qa.records import make_records, write_records
from longlora.corpus.qa.room import material_room
from longlora.corpus.qa.sections import TokenCounter
from longlora.corpus.qa.settings import Settings
from longlora.corpus.qa.templates import PromptSet, prompts_digest
from longlora.corpus.qa.work import Work
from longlora.data import DocumentSource
from longlora.errors import ConfigError

logger = logging.getLogger("longlora")

_INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True)
class Sending:
    """How calls are sent; nothing here changes a record, and all of it may differ from run to run."""

    limits: Limits = field(default_factory=Limits)
    pace: Pace = field(default_factory=Pace)
    backoff: Backoff = field(default_factory=Backoff)
    concurrency: int = 8
    """Calls under way at once."""

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ConfigError(f"--concurrency must be at least 1, got {self.concurrency}")


@dataclass(kw_only=True)
class Summary:
    """What a run did, and what is left to do."""

    num_documents: int = 0
    num_records: int = 0
    """Of all runs, in the file; with 0 no file is written."""

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

    @property
    def is_complete(self) -> bool:
        """Whether every call has its reply."""
        return self.num_unanswered == 0


def journal_path(out: Path) -> Path:
    """Where the journal of a set lies."""
    return out.with_name(f"{out.name}.journal.jsonl")


def make_questions(
    source: DocumentSource,
    out: Path,
    *,
    settings: Settings,
    prompts: dict[str, PromptSet],
    counter: TokenCounter,
    answerer: Answerer | None,
    sending: Sending,
    confirm: Callable[[Estimate, Journal], bool],
    progress: bool = True,
) -> Summary:
    """Ask about every document what has not been asked, and write all records; without an answerer only write them.

    Raises:
        ConfigError: the journal has other settings, a window is too small, the server takes no call, or `out` is a file
            that this did not write.
        DataError: there is nothing to read, or the journal is damaged.
        KeyboardInterrupt: after Ctrl-C, when the calls under way have ended.
    """
    kinds = prompts if settings.kind == "auto" else {settings.kind: prompts[settings.kind]}
    room = {kind: material_room(one, settings, counter) for kind, one in kinds.items()}
    documents = Documents(source, settings=settings, counter=counter, room=room)
    _check_out(out, is_written_only=answerer is None)

    def work(document: Document, ask: Ask) -> Work:
        return Work(
            document,
            prompts[document.kind],
            settings=settings,
            counter=counter,
            room=room[document.kind],
            ask=ask,
        )

    with each_warning_once(logger), Journal(journal_path(out), settings.header(prompts_digest(prompts))) as journal:
        summary = Summary(spent=journal.spent)
        if answerer is not None:
            estimate = Estimate()
            tally = Tally(estimate, journal=journal, counter=counter, questions=settings.questions)
            bar = shown(documents, "measuring", total=source.num_documents, progress=progress)
            asyncio.run(_count(bar, work, tally, estimate))
            if estimate.num_calls and not confirm(estimate, journal):
                summary.stopped_by = "not confirmed"
            elif estimate.num_calls:
                with progress_bar("asking", total=estimate.num_calls, progress=progress) as advance:
                    asyncio.run(_ask_all(documents, work, answerer, journal, counter, sending, advance, summary))
                if summary.stopped_by == _INTERRUPTED:
                    raise KeyboardInterrupt
        bar = shown(documents, "writing", total=source.num_documents, progress=progress)
        records = _records(bar, work, journal, prompts, settings, summary)
        summary.repeated = documents.repeated
        _write(out, records, summary)
    return summary


async def _count(
    documents: Iterable[Document], work: Callable[[Document, Ask], Work], tally: Tally, estimate: Estimate
) -> None:
    for document in documents:
        estimate.num_documents += 1
        estimate.document_tokens += document.num_tokens
        await work(document, tally.ask).outcome()


async def _ask_all(
    documents: Documents,
    work: Callable[[Document, Ask], Work],
    answerer: Answerer,
    journal: Journal,
    counter: TokenCounter,
    sending: Sending,
    advance: Callable[[int, str], None],
    summary: Summary,
) -> None:
    def show(call: Call) -> None:
        spent = journal.spent
        advance(1, f"{spent.prompt_tokens:,} tokens in, {spent.completion_tokens:,} out")

    caller = Caller(
        answerer,
        journal=journal,
        budget=Budget(sending.limits, journal.spent),
        pace=sending.pace,
        backoff=sending.backoff,
        counter=counter,
        concurrency=sending.concurrency,
        advance=show,
    )
    try:
        with _stopped_by_interrupt(caller):
            await _each(documents, lambda document: work(document, caller.ask), caller, sending.concurrency)
    finally:
        await answerer.close()
    summary.num_answered, summary.failures = caller.num_answered, caller.failures
    if isinstance(caller.stopped_by, RefusedError):
        raise ConfigError(
            f"the model cannot be asked: {caller.stopped_by}; check --base-url, --model and the key. "
            f"What was answered is kept in {journal.path}"
        )
    summary.stopped_by = str(caller.stopped_by) if caller.stopped_by else None


async def _each(documents: Documents, start: Callable[[Document], Work], caller: Caller, most: int) -> None:
    """Work on as many documents at once as calls may be under way: each has at least one to send."""
    places = asyncio.Semaphore(most)
    tasks: set[asyncio.Task[None]] = set()

    async def finish(document: Document) -> None:
        try:
            await start(document).outcome()  # what counts is in the journal
        finally:
            places.release()

    waiting = iter(documents)
    try:
        while caller.stopped_by is None:
            await places.acquire()
            # A thread, so that calls go on while a long book is read and measured.
            document = await asyncio.to_thread(next, waiting, None)
            if document is None:
                break
            tasks.add(asyncio.create_task(finish(document)))
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                task.result()
    except Exception as error:  # a document cannot be read: what is under way is paid for
        caller.stop(error)
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    await asyncio.gather(*tasks)


@contextmanager
def _stopped_by_interrupt(caller: Caller) -> Iterator[None]:
    """Let Ctrl-C end the run once what is under way has come back; a second one leaves that behind."""
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        logger.warning("interrupted: waiting for the calls under way; Ctrl-C again leaves them behind")
        caller.stop(_INTERRUPTED)
        loop.remove_signal_handler(signal.SIGINT)

    # Not possible in a thread, nor on Windows: there Ctrl-C leaves the calls behind at once.
    with suppress(NotImplementedError, RuntimeError, ValueError):
        loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_signal_handler(signal.SIGINT)


def _records(
    documents: Iterable[Document],
    work: Callable[[Document, Ask], Work],
    journal: Journal,
    prompts: dict[str, PromptSet],
    settings: Settings,
    summary: Summary,
) -> Iterator[dict[str, Any]]:
    """Make every record that the journal's replies allow, in the documents' order."""

    async def find(call: Call) -> Reply:
        if reply := journal.find(call.key):
            return reply
        raise UnansweredError("not in the journal")

    for document in documents:
        outcome = asyncio.run(work(document, find).outcome())
        summary.num_documents += 1
        summary.num_unanswered += outcome.num_unanswered
        yield from make_records(
            document, outcome, prompts=prompts[document.kind], settings=settings, dropped=summary.dropped
        )


def _write(out: Path, records: Iterator[dict[str, Any]], summary: Summary) -> None:
    """Write the records, unless there is none: an empty set is of no use, and an older one may stand there."""
    first = next(records, None)
    if first is None:
        return

    def every() -> Iterator[dict[str, Any]]:
        yield first
        yield from records

    summary.num_records = write_records(out, every())


def _check_out(out: Path, *, is_written_only: bool) -> None:
    has_journal = journal_path(out).exists()
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name a file, .json or .jsonl")
    if out.exists() and not has_journal:
        raise ConfigError(f"{out} exists and has no journal beside it; choose another name or move it away")
    if is_written_only and not has_journal:
        raise ConfigError(
            f"there is no journal {journal_path(out)} to write from; leave out --from-journal to make one"
        )
