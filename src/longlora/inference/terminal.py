"""The conversation in a terminal: questions in, answers out as they are written, and a few commands."""

import json
import re
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

from longlora.errors import LongLoRAError
from longlora.inference.answer import Answer
from longlora.inference.conversation import Conversation, Usage
from longlora.inference.documents import ReadDocument, join_documents
from longlora.support.files import write_atomically
from longlora.support.progress import Advance, progress_bar

HELP = """\
/document FILE…   begin anew about one or several files
/clear            forget what was said; the document stays
/context          how full the context is
/save FILE        write the conversation as text, or as JSON to a name that ends so
/help             this
/quit             leave (so does the end of input, Ctrl-D)
Ctrl-C stops an answer or the reading of a document; at the prompt it leaves."""


_METER_WIDTH = 24  # characters
_HARMLESS = dict.fromkeys((*range(9), *range(11, 32), 127), "�")  # what steers terminals
_PART = re.compile(r"\n|[ \t]+|[^ \t\n]+")
_TAB = 8


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
        with _ReadingBar("reading the document") as report:
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
        with _ReadingBar("reading") as report:
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
            self._say(answer.summary())
            self._say(usage_line(self._conversation.usage()))
        return answer

    def run(self) -> None:
        """Hold the conversation until the input ends or the user leaves."""
        if sys.stdin.isatty():
            import readline  # noqa: F401  # gives input() a history and a line to edit

            self._say(f"{self._conversation.chat_model.name}: ask away; /help tells more")
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
        self._say(f"questions so far: {len(self._conversation.turns)}")

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


class _ReadingBar(ExitStack):
    """A bar on stderr for what takes several pieces to read; closed before the answer begins, and then gone."""

    def __init__(self, description: str) -> None:
        super().__init__()
        self._description = description
        self._advance: Advance | None = None
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        if self._advance is None and done < total:
            self._advance = self.enter_context(progress_bar(self._description, total=total, transient=True))
        if self._advance is not None:
            self._advance(done - self._done, "tokens")
        self._done = done


def usage_line(usage: Usage) -> str:
    """A bar, and the numbers behind it."""
    filled = round(usage.share * _METER_WIDTH)
    return f"{'█' * filled}{'░' * (_METER_WIDTH - filled)} {usage}"


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


class Wrapping:
    """Writes text so that no word is broken at the terminal's edge; lines that fit are left as they are.

    The last word is held back until it is known to be whole; `finish` writes it. A script without spaces between words
    may end its lines anywhere, and is written at once.
    """

    def __init__(self, write: Callable[[str], object], num_columns: Callable[[], int] | None = None) -> None:
        self._write = write
        self._num_columns = num_columns or (lambda: shutil.get_terminal_size().columns)
        self._column = 0
        self._space = self._word = ""

    def feed(self, text: str) -> None:
        """Take the next piece."""
        for part in _PART.findall(text):
            if part == "\n":
                self.finish()
                self._write("\n")
                self._column = 0
            elif part[0] in " \t":
                self._end_word()
                self._space += part
            else:
                for character in part:
                    self._word += character
                    if cell_len(character) > 1:
                        self._end_word()

    def finish(self) -> None:
        """Write what was held back."""
        self._end_word()
        self._write(self._space)
        self._column = self._after(self._space)
        self._space = ""

    def _end_word(self) -> None:
        if not self._word:
            return
        width = cell_len(self._word)
        if self._column and self._after(self._space) + width > self._num_columns():
            self._write("\n" + self._word)
            self._column = width
        else:
            self._write(self._space + self._word)
            self._column = self._after(self._space) + width
        self._space = self._word = ""

    def _after(self, space: str) -> int:
        """Column behind blanks that begin where the line stands."""
        column = self._column
        for character in space:
            column += _TAB - column % _TAB if character == "\t" else 1
        return column
