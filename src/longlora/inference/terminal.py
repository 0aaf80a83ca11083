"""Chat in a terminal: questions in, streamed answers out, and a few commands."""

import json
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from rich.cells import cell_len
from rich.console import Console

from longlora.errors import DataError, LongLoRAError
from longlora.inference.answer import StreamedAnswer
from longlora.inference.conversation import Chat
from longlora.inference.documents import ReadDocument, join_documents
from longlora.support.files import write_atomically
from longlora.support.machine import handling
from longlora.support.progress import Advance, progress_bar

HELP = """\
/document FILE…   start over with one or several files
/clear            forget the conversation; the document stays
/context          show how full the context is
/save FILE        write the conversation as text, or as JSON to a name in .json
/help             show this list
/quit             exit (as does the end of input, Ctrl-D)
Ctrl-C stops an answer or the reading of a document; at the prompt it exits."""

_METER_WIDTH = 24  # characters
_WHITE_SPACE = " \t\n"
_HARMLESS = dict.fromkeys((*range(9), *range(11, 32), 127), "�")  # control characters


class Terminal:
    """Reads questions and commands, and writes answers to stdout; everything else goes to stderr."""

    def __init__(self, conversation: Chat, read_document: ReadDocument) -> None:
        self._conversation = conversation
        self._read_document = read_document
        self._aside = Console(stderr=True, highlight=False, soft_wrap=True)

    def open_document(self, name: str, text: str) -> None:
        """Start a conversation about a document.

        Raises:
            DataError: it is too long, and cutting is off.
        """
        self._say(*self._conversation.set_document(name, text))
        stop = threading.Event()
        with _ReadingBar("reading the document") as report, _interrupt(stop):
            notes = self._conversation.read_document(report, stop)
        self._say(*notes)

    def ask(self, question: str, *, tell: bool = True) -> StreamedAnswer:
        """Stream the answer to a question to stdout; Ctrl-C stops it.

        Raises:
            DataError: the question does not fit.
        """
        with _ReadingBar("reading") as report:
            answer, notes = self._conversation.ask(question, report)
            self._say(*notes)
            with _interrupt(answer.stopping), _written() as write:
                is_first = True
                for piece in answer:
                    report.close()
                    # SentencePiece words begin with a space, and so does the answer's first one.
                    write(piece.lstrip(" ") if is_first else piece)
                    is_first = False
        print(flush=True)
        self._conversation.finish(question, answer)
        if tell:
            self._say(answer.summary(), self._meter())
        return answer

    def run(self) -> None:
        """Run the conversation until the input ends or the user quits."""
        if sys.stdin.isatty():
            import readline  # noqa: F401  # gives input() history and line editing

            self._say(f"{self._conversation.chat_model.name}: ready; /help lists commands", self._meter())
        while True:
            try:
                line = input("\n> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line in ("/quit", "/exit"):
                return
            try:
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self.ask(line)
            except LongLoRAError as error:
                self._aside.print(f"longlora: {error}", style="red", markup=False)

    def _command(self, line: str) -> None:
        try:
            words = shlex.split(line)
        except ValueError as error:  # an unclosed quotation
            raise DataError(f"{line}: {error}") from error
        match words:
            case ["/document"]:
                raise DataError("name one or several files: /document FILE…")
            case ["/document", *names]:
                paths = [Path(name).expanduser() for name in names]
                self.open_document(*join_documents(paths, self._read_document))
                self._say(self._meter())
            case ["/clear", *_]:
                self._conversation.clear()
                self._say("forgotten", self._meter())
            case ["/context", *_]:
                self._say(self._meter())
                if (document := self._conversation.document) is not None:
                    cut = f", {document.num_cut:,} tokens cut out of its middle" if document.num_cut else ""
                    self._say(f"document: {document.name}{cut}")
                self._say(f"questions so far: {len(self._conversation.turns)}")
            case ["/save", name]:
                self._save(Path(name).expanduser())
            case ["/save", *_]:
                raise DataError("name one file: /save FILE")
            case ["/help", *_]:
                self._say(HELP)
            case _:
                raise DataError(f"there is no {words[0]}\n{HELP}")

    def _save(self, path: Path) -> None:
        messages = self._conversation.messages()
        if path.suffix == ".json":
            text = json.dumps(messages, indent=2, ensure_ascii=False)
        else:
            text = "\n\n".join(f"{message['role']}: {message['content'].strip()}" for message in messages)
        try:
            write_atomically(path, text + "\n")
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}") from error
        self._say(f"written to {path}")

    def _meter(self) -> str:
        """Return a bar and the numbers behind it."""
        usage = self._conversation.usage()
        filled = round(usage.share * _METER_WIDTH)
        return f"{'█' * filled}{'░' * (_METER_WIDTH - filled)} {usage}"

    def _say(self, *lines: str) -> None:
        for line in lines:
            self._aside.print(line, style="dim", markup=False)


class _ReadingBar(ExitStack):
    """A bar on stderr for reading in several pieces; it disappears when closed, before the answer begins."""

    _advance: Advance | None = None
    _done = 0

    def __init__(self, description: str) -> None:
        super().__init__()
        self._description = description

    def __call__(self, done: int, total: int) -> None:
        if self._advance is None and done < total:
            self._advance = self.enter_context(progress_bar(self._description, total=total, transient=True))
        if self._advance is not None:
            self._advance(done - self._done, "tokens")
        self._done = done


@contextmanager
def _written() -> Iterator[Callable[[str], None]]:
    """Yield a writer to stdout: for a terminal, in whole words without control characters; otherwise unchanged."""
    if not sys.stdout.isatty():
        yield lambda piece: print(piece, end="", flush=True)
        return
    wrapping = Wrapping(sys.stdout.write, lambda: shutil.get_terminal_size().columns)

    def write(piece: str) -> None:
        wrapping.feed(piece.translate(_HARMLESS))
        sys.stdout.flush()

    try:
        yield write
    finally:
        wrapping.finish()


@contextmanager
def _interrupt(stopping: threading.Event) -> Iterator[None]:
    """Let Ctrl-C stop the current action, and only a second one the program."""

    def stop_or_leave(signal_number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    with handling(signal.SIGINT, stop_or_leave):
        yield


class Wrapping:
    """Writes text without breaking words at the terminal's edge; lines that fit are left unchanged.

    The last word is held back until it is complete; `finish` writes it. Scripts without spaces between words may break
    anywhere, and are written at once.
    """

    def __init__(self, write: Callable[[str], object], num_columns: Callable[[], int]) -> None:
        self._write, self._num_columns = write, num_columns
        self._column = 0
        self._held = ""  # white space, and the word after it

    def feed(self, text: str) -> None:
        """Add the next piece."""
        for character in text:
            if character in _WHITE_SPACE and self._held.strip(_WHITE_SPACE):
                self.finish()
            self._held += character
            if character == "\n" or cell_len(character) > 1:
                self.finish()

    def finish(self) -> None:
        """Write what was held back, on a new line if the word does not fit."""
        word = self._held.lstrip(_WHITE_SPACE)
        space = self._held.removesuffix(word)
        begin = len((" " * self._column + space).expandtabs().rpartition("\n")[2])
        if word and self._column and begin + cell_len(word) > self._num_columns():
            space, begin = "\n", 0
        self._write(space + word)
        self._column, self._held = begin + cell_len(word), ""
