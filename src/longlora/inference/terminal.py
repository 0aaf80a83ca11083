"""The conversation in a terminal: questions in, answers out as they are written, and a few commands."""

import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from longlora.errors import LongLoRAError
from longlora.inference.answer import Answer
from longlora.inference.conversation import Conversation
from longlora.inference.documents import ReadDocument, join_documents
from longlora.inference.meter import answer_line, usage_line
from longlora.inference.wrapping import Wrapping
from longlora.support.files import write_atomically

HELP = """\
/document FILE…   begin anew about one or several files
/clear            forget what was said; the document stays
/context          how full the context is
/save FILE        write the conversation as text, or as JSON to a name that ends so
/help             this
/quit             leave (so does the end of input, Ctrl-D)
Ctrl-C stops an answer or the reading of a document; at the prompt it leaves."""


_HARMLESS = dict.fromkeys((*range(9), *range(11, 32), 127), "�")  # what steers terminals


class Terminal:
    """Reads questions and commands, and writes answers to stdout; everything else goes to stderr."""

    def __init__(self, conversation: Conversation, read_document: ReadDocument) -> None:
        self._conversation = conversation
        self._read_document = read_document
        self._aside = Console(stderr=True, highlight=False, soft_wrap=True)
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "/document": self._document,
            "/clear": self._clear,
            "/context": self._context,
            "/save": self._save,
            "/help": lambda _: self._say(HELP),
        }

    def open_document(self, name: str, text: str) -> None:
        """Begin a conversation about a document.

        Raises:
            DataError: it is too long and not to be cut.
        """
        for note in self._conversation.set_document(name, text):
            self._say(note)
        with self._reading("reading the document") as report:
            stop = threading.Event()
            with _interrupt(stop.set, stop.is_set):
                notes = self._conversation.read_document(report, stop)
        for note in notes:
            self._say(note)

    def ask(self, question: str, *, tell: bool = True) -> Answer:
        """Write the answer to a question to stdout as it comes; Ctrl-C ends it.

        Raises:
            DataError: the question does not fit.
        """
        with self._reading("reading") as report:
            answer, notes = self._conversation.ask(question, report)
            for note in notes:
                self._say(note)
            with _interrupt(answer.stop, lambda: answer.stopped), _written() as write:
                is_first = True
                for piece in answer:
                    report.close()
                    # Words of SentencePiece begin with a space, the answer's first one too.
                    write(piece.lstrip(" ") if is_first else piece)
                    is_first = False
        print(flush=True)
        self._conversation.finish(question, answer)
        if tell:
            self._say(answer_line(answer))
            self._say(usage_line(self._conversation.usage()))
        return answer

    def run(self) -> None:
        """Hold the conversation until the input ends or the user leaves."""
        if sys.stdin.isatty():
            import readline  # noqa: F401  # gives input() a history and a line to edit

            self._say(f"{self._conversation.speaker.name}: ask away; /help tells more")
            self._say(usage_line(self._conversation.usage()))
        for line in self._lines():
            try:
                if line in ("/quit", "/exit"):
                    return
                if line.startswith("/"):
                    self._command(line)
                else:
                    self.ask(line)
            except LongLoRAError as error:
                self._aside.print(f"longlora: {error}", style="red", markup=False)

    def _lines(self) -> Iterator[str]:
        """What the user writes, a line at a time, empty ones left out."""
        while True:
            try:
                line = input("\n> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line:
                yield line

    def _command(self, line: str) -> None:
        try:
            name, *arguments = shlex.split(line)
        except ValueError as error:  # a quotation that does not end
            return self._say(f"{line}: {error}")
        if name not in self._commands:
            return self._say(f"there is no {name}\n{HELP}")
        self._commands[name](arguments)

    def _document(self, arguments: list[str]) -> None:
        if not arguments:
            return self._say("name one or several files: /document FILE…")
        self.open_document(*join_documents([Path(name).expanduser() for name in arguments], self._read_document))
        self._say(usage_line(self._conversation.usage()))

    def _clear(self, _: list[str]) -> None:
        self._conversation.clear()
        self._say(f"forgotten\n{usage_line(self._conversation.usage())}")

    def _context(self, _: list[str]) -> None:
        usage = self._conversation.usage()
        self._say(usage_line(usage))
        if self._conversation.document is not None:
            document = self._conversation.document
            cut = f", {document.num_cut:,} tokens cut out of its middle" if document.num_cut else ""
            self._say(f"document: {document.name}{cut}")
        self._say(f"questions so far: {usage.num_turns}")

    def _save(self, arguments: list[str]) -> None:
        if len(arguments) != 1:
            return self._say("name one file: /save FILE")
        path = Path(arguments[0]).expanduser()
        messages = self._conversation.messages()
        if path.suffix == ".json":
            text = json.dumps(messages, indent=2, ensure_ascii=False)
        else:
            text = "\n\n".join(f"{message['role']}: {message['content'].strip()}" for message in messages)
        try:
            write_atomically(path, text + "\n")
        except OSError as error:
            return self._say(f"{path} cannot be written: {error.strerror}")
        self._say(f"written to {path}")

    def _say(self, text: str) -> None:
        self._aside.print(text, style="dim", markup=False)

    @contextmanager
    def _reading(self, description: str) -> "Iterator[_ReadingBar]":
        bar = _ReadingBar(description, self._aside)
        try:
            yield bar
        finally:
            bar.close()


class _ReadingBar:
    """A bar on stderr for what takes several pieces to read; it is gone before the answer begins."""

    def __init__(self, description: str, console: Console) -> None:
        self._bar = Progress(
            TextColumn(description),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tokens"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(description, total=None)
        self._is_open = False

    def __call__(self, done: int, total: int) -> None:
        if done < total and not self._is_open and self._bar.console.is_terminal:
            self._bar.start()
            self._is_open = True
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._is_open:
            self._bar.stop()
            self._is_open = False


@contextmanager
def _written() -> Iterator[Callable[[str], None]]:
    """What writes an answer to stdout: for a reader without what steers terminals and in whole words, else as it is."""
    if not sys.stdout.isatty():
        yield lambda piece: print(piece, end="", flush=True)
        return
    wrapping = Wrapping(sys.stdout.write)

    def write(piece: str) -> None:
        wrapping.feed(piece.translate(_HARMLESS))
        sys.stdout.flush()

    try:
        yield write
    finally:
        wrapping.finish()


@contextmanager
def _interrupt(stop: Callable[[], None], is_stopped: Callable[[], bool]) -> Iterator[None]:
    """Let Ctrl-C stop what is going on, and only a second one the program."""

    def stop_or_leave(signal_number: int, frame: FrameType | None) -> None:
        if is_stopped():
            raise KeyboardInterrupt
        stop()

    before = signal.signal(signal.SIGINT, stop_or_leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
