"""Rows of question sets and of texts, taken apart into document, question and answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlora.data.conversations import CONVERSATIONS, Conversation, Message
from longlora.data.row_readers import MissingColumnError, Skipped, UnreadableError, read_file, text_kind
from longlora.errors import DataError

# A message whose middle lines are shorter is a question with a remark, not one about a document.
_SHORTEST_DOCUMENT = 400  # characters


@dataclass(frozen=True)
class Row:
    """A row of a file; a text is a row with a document alone."""

    name: str
    messages: tuple[Message, ...]
    document: str
    """The longest message without its first and last line, where the question stands; empty if it holds none."""
    question: str
    answer: str
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def kind(self) -> str:
        """What sort of row it is, in words."""
        if not self.messages:
            return "text"
        parts = ["document and question" if self.document else "question without a document"]
        if sum(message["role"] == "assistant" for message in self.messages) > 1:
            parts.append("several answers")
        if self.messages[0]["role"] == "system":
            parts.append("system message")
        return ", ".join(parts)


def read_rows(path: Path, *, text_column: str = "text") -> tuple[Iterator[Row], Skipped]:
    """Read a file of conversations, or else of texts, and what of it had to be skipped (complete after the last row).

    Raises:
        DataError: it is neither, or cannot be read; while reading, that it holds nothing usable.
    """
    skipped = Skipped()
    rows = _conversations(path, skipped)
    try:
        first = next(rows, None)
    except MissingColumnError:
        skipped = Skipped()
        rows = _texts(path, text_column, skipped)
        first = _first_of(path, rows)
    except UnreadableError as error:
        raise DataError(f"{path} is {error}; name a file of conversations (docs/conversations.md)") from error
    if first is None:
        raise DataError(f"{path} holds no usable row: {skipped.summary() or 'it is empty'}")
    return _chained(path, first, rows), skipped


def _first_of(path: Path, rows: Iterator[Row]) -> Row | None:
    try:
        return next(rows, None)
    except UnreadableError as error:
        raise DataError(
            f"{path} has {error}; it needs the columns of a conversation (docs/conversations.md), or a text: "
            "--text-column"
        ) from error


def _chained(path: Path, first: Row, rows: Iterator[Row]) -> Iterator[Row]:
    yield first
    try:
        yield from rows
    except UnreadableError as error:
        raise DataError(f"{path} is {error}") from error


def _conversations(path: Path, skipped: Skipped) -> Iterator[Row]:
    for name, conversation in read_file(path, CONVERSATIONS, skipped):
        yield _row(name, conversation)


def _texts(path: Path, column: str, skipped: Skipped) -> Iterator[Row]:
    for name, text in read_file(path, text_kind(column), skipped):
        yield Row(name, (), document=text, question="", answer="")


def _row(name: str, conversation: Conversation) -> Row:
    asked = [message["content"] for message in conversation.messages if message["role"] != "assistant"]
    document, question = _document_and_question(max(asked, key=len, default=""))
    answers = [message["content"] for message in conversation.messages if message["role"] == "assistant"]
    return Row(name, conversation.messages, document, question, "\n".join(answers), conversation.tools)


def _document_and_question(message: str) -> tuple[str, str]:
    lines = [line for line in message.splitlines() if line.strip()]
    middle = "\n".join(lines[1:-1])
    if len(middle) < _SHORTEST_DOCUMENT or len(middle) < len(message) / 2:
        return "", message
    return middle, lines[-1]
