"""How a set of questions is made: count what it takes, ask, write.

Read `make_questions` from top to bottom.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from longlora.corpus.qa.asking import Answerer, Caller
from longlora.corpus.qa.calls import Ask, Call, CallJournal, RefusedError, Reply
from longlora.corpus.qa.chunks import Document, Documents, TokenCounter, material_room
from longlora.corpus.qa.document_qa import DocumentQA
from longlora.corpus.qa.estimate import Estimate, Tally
from longlora.corpus.qa.prompt_files import PromptSet, prompts_digest
from longlora.corpus.qa.qa_settings import Sending, Settings
from longlora.corpus.qa.records import Summary, make_records
from longlora.corpus.question_rows import write_rows
from longlora.data import DocumentSource
from longlora.errors import ConfigError
from longlora.support.progress import progress_bar, shown

logger = logging.getLogger("longlora")

_INTERRUPTED = "interrupted"


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
    confirm: Callable[[Estimate, CallJournal], bool],
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
    header = asdict(settings) | {"prompts": prompts_digest(prompts)}
    with _each_warning_once(), CallJournal(journal_path(out), header) as journal:
        questions = _QuestionSet(documents, settings, prompts, counter, room, journal, progress)
        summary = Summary(spent=journal.spent)
        if answerer is not None:
            estimate = asyncio.run(questions.estimate())
            if estimate.num_calls and not confirm(estimate, journal):
                summary.stopped_by = "not confirmed"
            elif estimate.num_calls:
                asyncio.run(questions.ask(answerer, sending, estimate.num_calls, summary))
                if summary.stopped_by == _INTERRUPTED:
                    raise KeyboardInterrupt
        records = questions.records(summary)
        if (first := next(records, None)) is not None:  # an empty set is of no use, and an older one may stand there
            summary.num_records = write_rows(out, chain([first], records))
        summary.repeated, summary.cost = documents.repeated, sending.cost(journal.spent)
    return summary


@dataclass(frozen=True)
class _QuestionSet:
    documents: Documents
    settings: Settings
    prompts: dict[str, PromptSet]
    counter: TokenCounter
    room: dict[str, int]
    journal: CallJournal
    progress: bool

    def about(self, document: Document, ask: Ask) -> DocumentQA:
        """Prepare what is to be asked about a document."""
        prompts, room = self.prompts[document.kind], self.room[document.kind]
        return DocumentQA(document, prompts, settings=self.settings, counter=self.counter, room=room, ask=ask)

    def shown(self, description: str) -> Iterator[Document]:
        """Read the documents with a bar."""
        return shown(self.documents, description, total=self.documents.num_documents, progress=self.progress)

    async def estimate(self) -> Estimate:
        """Count the calls that have no reply yet."""
        tally = Tally(self.journal, self.counter, questions=self.settings.questions)
        for document in self.shown("measuring"):
            tally.estimate.num_documents += 1
            tally.estimate.document_tokens += document.num_tokens
            await self.about(document, tally.ask).candidates()
        return tally.estimate

    async def ask(self, answerer: Answerer, sending: Sending, num_calls: int, summary: Summary) -> None:
        """Put every reply that can be had into the journal."""
        with progress_bar("asking", total=num_calls, progress=self.progress) as advance:

            def show() -> None:
                spent = self.journal.spent
                advance(1, f"{spent.prompt_tokens:,} tokens in, {spent.completion_tokens:,} out")

            caller = Caller(answerer, journal=self.journal, sending=sending, counter=self.counter, advance=show)
            try:
                with _stopped_by_interrupt(caller):
                    await self._ask_about_each(caller, sending.concurrency)
            finally:
                await answerer.close()
        summary.num_answered, summary.failures = caller.num_answered, caller.failures
        if isinstance(caller.stopped_by, RefusedError):
            raise ConfigError(
                f"the model cannot be asked: {caller.stopped_by}; check --base-url, --model and the key. "
                f"What was answered is kept in {self.journal.path}"
            )
        summary.stopped_by = str(caller.stopped_by) if caller.stopped_by else None

    async def _ask_about_each(self, caller: Caller, num_at_once: int) -> None:
        """Work on as many documents at once as calls may be under way: each has at least one to send."""
        waiting, turn = iter(self.documents), asyncio.Lock()

        async def work() -> None:
            while caller.stopped_by is None:
                async with turn:  # and a thread, so that calls go on while a long book is read and measured
                    document = await asyncio.to_thread(next, waiting, None)
                if document is None:
                    return
                await self.about(document, caller.ask).candidates()  # what counts is in the journal

        workers = [asyncio.create_task(work()) for _ in range(num_at_once)]
        try:
            await asyncio.gather(*workers)
        except Exception as error:  # a document cannot be read: what is under way is paid for
            caller.stop(error)
            await asyncio.gather(*workers, return_exceptions=True)
            raise

    def records(self, summary: Summary) -> Iterator[dict[str, Any]]:
        """Make every record that the journal's replies allow, in the documents' order."""

        async def find(call: Call) -> Reply | None:
            return self.journal.find(call.key)

        for document in self.shown("writing"):
            qa = self.about(document, find)
            candidates = asyncio.run(qa.candidates())
            summary.num_documents += 1
            summary.num_unanswered += qa.num_unanswered
            yield from make_records(qa, candidates, self.settings, summary.dropped)


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


@contextmanager
def _each_warning_once() -> Iterator[None]:
    """Leave out what was said already: documents are read several times, and so are those that are skipped."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_known = message in said
        said.add(message)
        return not is_known

    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


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
