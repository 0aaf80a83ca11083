"""Conversations to fine-tune on, in the forms that data sets keep them in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longlora.data.readers import UnreadableError, UnusableError, is_unicode, missing_columns

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""

# Who speaks, in ShareGPT's words and in those of chat templates.
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}

_FORMS = "each row needs messages, instruction and output, prompt and completion, or conversations (docs/finetuning.md)"


@dataclass(frozen=True)
class Conversation:
    """Messages in their order, with at least one answer.

    Read from rows of any of these forms: `messages` (a list of `role` and `content`), `instruction`, `output` and
    optionally `input` and `system` (Alpaca, LongAlpaca), `prompt` and `completion` (texts, or lists of messages),
    `conversations` (ShareGPT: `from` and `value`).
    """

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class ConversationKind:
    """Conversations: rows of a table."""

    name: str = "conversation"
    columns: Sequence[str] | None = None
    remedy: str = _FORMS
    column_remedy: str = _FORMS

    def check(self, columns: Iterable[str]) -> None:
        """See that one of the known forms is there."""
        if _form(columns) is None:
            raise missing_columns("no columns of a conversation", columns)

    def of_row(self, row: Mapping[str, Any]) -> Conversation:
        """Read the messages of a row."""
        form = _form(row)
        if form is None:
            raise UnusableError("without the columns of a conversation")
        messages = _READERS[form](row)
        if not any(message["role"] == "assistant" for message in messages):
            raise UnusableError("without an answer")
        for message in messages:
            if message["role"] == "assistant" and not message["content"].strip():
                raise UnusableError("with an empty answer")
            if not is_unicode(message["content"]):
                raise UnusableError("not UTF-8 text")
        return Conversation(messages)

    def of_text(self, text: str) -> Conversation:
        """Refuse: a text is no conversation."""
        raise UnreadableError("no table of conversations (JSON, JSONL or Parquet)")


def _form(columns: Iterable[str]) -> str | None:
    present = set(columns)
    for needed in (("messages",), ("instruction", "output"), ("prompt", "completion"), ("conversations",)):
        if present.issuperset(needed):
            return needed[0]
    return None


def _from_messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    return _messages(row["messages"], "role", "content")


def _from_sharegpt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    return _messages(row["conversations"], "from", "value")


def _from_alpaca(row: Mapping[str, Any]) -> tuple[Message, ...]:
    question = _text(row, "instruction")
    if context := _text(row, "input"):
        question = f"{question}\n{context}"
    system = _text(row, "system")
    opening = ({"role": "system", "content": system},) if system else ()
    return (*opening, _user(question), _assistant(_text(row, "output")))


def _from_prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    if isinstance(row["prompt"], str):
        return (_user(row["prompt"]), _assistant(_text(row, "completion")))
    return _messages(row["prompt"], "role", "content") + _messages(row["completion"], "role", "content")


_READERS = {
    "messages": _from_messages,
    "conversations": _from_sharegpt,
    "instruction": _from_alpaca,
    "prompt": _from_prompt,
}


def _messages(values: Any, role_key: str, content_key: str) -> tuple[Message, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise UnusableError("without messages")
    messages = []
    for value in values:
        if not isinstance(value, Mapping) or not isinstance(value.get(content_key), str):
            raise UnusableError(f"with a message without {content_key} in text")
        role = _ROLES.get(str(value.get(role_key)))
        if role is None:
            raise UnusableError(f"with a message of the unknown {role_key} {value.get(role_key)!r}")
        messages.append({"role": role, "content": value[content_key]})
    return tuple(messages)


def _text(row: Mapping[str, Any], column: str) -> str:
    text = row.get(column)
    if text is not None and not isinstance(text, str):
        raise UnusableError(f"with {type(text).__name__} instead of text in column {column!r}")
    return text or ""


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
