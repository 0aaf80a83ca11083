"""Rows of question sets and of texts: taken apart into document, question and answer, and written."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longlora.data.conversations import CONVERSATIONS, Conversation, Message
from longlora.data.row_readers import MissingColumnError, Skipped, UnreadableError, read_file, text_kind
from longlora.errors import DataError
from longlora.support.files import flush, replaced_file

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
    rows = (_row(name, conversation) for name, conversation in read_file(path, CONVERSATIONS, skipped))
    try:
        first = next(rows, None)
    except MissingColumnError:
        skipped = Skipped()
        texts = read_file(path, text_kind(text_column), skipped)
        rows = (Row(name, (), document=text, question="", answer="") for name, text in texts)
        try:
            first = next(rows, None)
        except UnreadableError as error:
            raise DataError(
                f"{path} has {error}; it needs the columns of a conversation (docs/conversations.md), or a text: "
                "--text-column"
            ) from error
    except UnreadableError as error:
        raise DataError(f"{path} is {error}; name a file of conversations (docs/conversations.md)") from error
    if first is None:
        raise DataError(f"{path} holds no usable row: {skipped.summary() or 'it is empty'}")
    return _all(path, first, rows), skipped


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows one by one, as lines for a name that ends in .jsonl and as a JSON list for any other; their number.

    A reader sees the old file or the whole new one.
    """
    begin, between, end = ("", "\n", "\n") if path.suffix == ".jsonl" else ("[\n", ",\n", "\n]\n")
    number = 0
    with replaced_file(path) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            for number, row in enumerate(rows, start=1):
                file.write((begin if number == 1 else between) + json.dumps(row, ensure_ascii=False))
            file.write(end if number else begin.strip() + end.strip())
        flush(temporary)
    return number


def _all(path: Path, first: Row, rows: Iterator[Row]) -> Iterator[Row]:
    yield first
    try:
        yield from rows
    except UnreadableError as error:
        raise DataError(f"{path} is {error}") from error


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
