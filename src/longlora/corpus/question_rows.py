"""Read rows of question sets, split into document, question and answer, or of texts; and write rows."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from longlora.data.conversations import CONVERSATIONS, Conversation, Message
from longlora.data.row_readers import (
    ItemKind,
    MissingColumnError,
    Skipped,
    UnreadableError,
    is_table,
    read_part,
    text_kind,
)
from longlora.data.sources import read_or_skip
from longlora.errors import DataError
from longlora.support.files import flush, replaced_file
from longlora.support.locate import Part, locate

# A message whose middle lines are shorter than this is a question with a remark, not one about a document.
_SHORTEST_DOCUMENT = 400  # characters


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a file; a text is a row that has only a document."""

    name: str = ""
    messages: tuple[Message, ...] = ()
    document: str  # the longest message without its first line and its last, the question; empty if there is none
    question: str = ""
    answer: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What `corpus make-qa` records about a row: quotations, the kind of question, the document's name."""

    @property
    def kind(self) -> str:
        """The kind of row, in words."""
        if not self.messages:
            return "text"
        parts = ["document and question" if self.document else "question without a document"]
        if sum(message["role"] == "assistant" for message in self.messages) > 1:
            parts.append("several answers")
        if self.messages[0]["role"] == "system":
            parts.append("system message")
        return ", ".join(parts)


def read_rows(source: str | Path, *, text_column: str = "text") -> tuple[Iterator[Row], Skipped]:
    """Read conversations, or else texts; return the rows, and what was skipped (complete after the last row).

    A source is anything that training reads: a file, a folder, a glob, a saved data set, or the name of one on the hub.

    Raises:
        DataError: the source is neither, contains nothing usable, or cannot be read (also while iterating).
    """
    parts = locate(str(source))
    # A README next to tables, as in data sets on the hub, is not a row.
    tables = [part for part in parts if part.kind != "file" or is_table(Path(part.location))]
    conversations, texts = CONVERSATIONS.into(_row), text_kind(text_column).into(lambda text, _: Row(document=text))
    for kind, chosen in ((conversations, tables or parts), (texts, parts)):
        skipped = Skipped()
        rows = _read(source, chosen, kind, skipped)
        try:
            first = next(rows, None)
        except MissingColumnError as error:
            if kind is conversations:
                continue
            remedy = "it needs the columns of a conversation (docs/conversations.md) or a text (--text-column)"
            raise DataError(f"{source} has {error}; {remedy}") from error
        if first is not None:
            return chain([first], rows), skipped
        if len(parts) == 1:
            break
    raise DataError(f"{source} contains no usable row: {skipped.summary() or 'it is empty'}")


def _read(source: str | Path, parts: Sequence[Part], kind: ItemKind[Row], skipped: Skipped) -> Iterator[Row]:
    """Read all parts; an unreadable file is skipped if there are others, and refused if it is the only one."""
    read = read_part if len(parts) == 1 else read_or_skip
    try:
        for part in parts:
            for name, row in read(part, kind, "train", skipped):
                yield replace(row, name=name)
    except MissingColumnError:
        raise
    except UnreadableError as error:
        raise DataError(f"{source} is {error}; give a file of conversations (docs/conversations.md)") from error


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows one by one, as JSON lines if the suffix is .jsonl, else as a JSON list; return their number.

    The file is replaced atomically.
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


def _row(conversation: Conversation, values: Mapping[str, Any]) -> Row:
    asked = [message["content"] for message in conversation.messages if message["role"] != "assistant"]
    document, question = _document_and_question(max(asked, key=len, default=""))
    answers = [message["content"] for message in conversation.messages if message["role"] == "assistant"]
    provenance = values.get("provenance")
    return Row(
        messages=conversation.messages,
        document=document,
        question=question,
        answer="\n".join(answers),
        tools=conversation.tools,
        provenance=provenance if isinstance(provenance, dict) else {},
    )


def _document_and_question(message: str) -> tuple[str, str]:
    lines = [line for line in message.splitlines() if line.strip()]
    middle = "\n".join(lines[1:-1])
    if len(middle) < _SHORTEST_DOCUMENT or len(middle) < len(message) / 2:
        return "", message
    return middle, lines[-1]
