"""Read conversations to fine-tune on, in the formats that data sets use."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longlora.data.row_readers import ItemKind, UnreadableError, UnusableError, check_unicode, text_of

Message = dict[str, Any]
"""`role` (system, developer, user, assistant or tool), `content` as text, and the message's other fields:
`reasoning_content`, `tool_calls`, `name`, `weight`, and whatever the chat template may read."""

# Names of the roles in chat templates and in ShareGPT.
_SPEAKERS = {
    "system": "system",
    "developer": "developer",
    "user": "user human",
    "assistant": "assistant gpt chatgpt bing bard model function_call tool_call",
    "tool": "tool function observation function_response tool_response",
}
_ROLES = {speaker: role for role, speakers in _SPEAKERS.items() for speaker in speakers.split()}
_CALLING_ROLES = ("function_call", "tool_call")

# Names for whether a message is learned: OpenAI's and axolotl's, axolotl's, ms-swift's.
_WEIGHTS = ("weight", "train", "loss")

# Names of the content in chat templates, in ShareGPT, and in a variant of it.
_CONTENTS = ("content", "value", "text")

_REASONING = ("reasoning_content", "reasoning", "thinking")

# Columns and fields that would change what is learned, and are not supported here.
_UNSUPPORTED_COLUMNS = (
    *("image", "images", "video", "videos", "audio", "audios", "documents", "functions", "history"),
    *("chat_template_kwargs", "weight", "train", "loss", "chosen", "rejected"),
)
_UNSUPPORTED_FIELDS = ("function_call", "train_detail", "training_detail", "prefix", "audio", "images", "refusal")


@dataclass(frozen=True)
class Conversation:
    """Messages in order, with at least one answer.

    Read from rows in any of these forms: `messages` (a list of `role` and `content`); `instruction`, `output` and
    optionally `input` and `history` (Alpaca, LongAlpaca); `prompt` and `completion` (texts, or lists of messages);
    `conversations` (ShareGPT: `from` and `value`); each optionally with `system` and `tools`.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()  # functions that the assistant may call, as JSON schemas
    unread: tuple[str, ...] = ()  # columns of the row that were not used


def is_learned(message: Message) -> bool:
    """Return whether a message is an answer to be learned: the assistant's, with a weight other than 0."""
    return message["role"] == "assistant" and bool(message.get("weight", 1))


def _conversation(row: Mapping[str, Any]) -> Conversation:
    form = _form(row)
    if form is None:
        raise UnusableError("without the columns of a conversation")
    read = (*form, *_BESIDE.get(form[0], ()), "system", "tools")
    given = [name for name, value in row.items() if name not in read and not _is_empty(value)]
    for name in given:
        if name in _UNSUPPORTED_COLUMNS and not (name in _WEIGHTS and row[name] == 1):
            raise UnusableError(f"with a column {name!r}, which is not supported (docs/conversations.md)")
    messages = _with_system(_FORMS[form](row), text_of(row, "system"))
    tools = _tools(row.get("tools"))
    check_unicode(json.dumps([messages, tools], ensure_ascii=False, default=str))
    _check_answers(messages)
    return Conversation(messages, tools, tuple(name for name in given if name not in _WEIGHTS))


def _form(columns: Iterable[str]) -> tuple[str, ...] | None:
    present = set(columns)
    return next((form for form in _FORMS if present.issuperset(form)), None)


def _check_answers(messages: Sequence[Message]) -> None:
    if not any(message["role"] == "assistant" for message in messages):
        raise UnusableError("without an answer")
    learned = [message for message in messages if is_learned(message)]
    if not learned:
        raise UnusableError("whose answers all have weight 0")
    if not all(message["content"].strip() or message.get("tool_calls") for message in learned):
        raise UnusableError("with an empty answer")


def _from_alpaca(row: Mapping[str, Any]) -> tuple[Message, ...]:
    question = text_of(row, "instruction")
    if context := text_of(row, "input"):
        question = f"{question}\n{context}"
    history = row.get("history") or []
    if not isinstance(history, list) or not all(_is_pair(said) for said in history):
        raise UnusableError("with a history that is not a list of pairs of texts")
    turns = [*history, (question, text_of(row, "output"))]
    return tuple(
        message for asked, answered in turns for message in (_said("user", asked), _said("assistant", answered))
    )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _from_prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Read a prompt, whose answers are not learned, and its completion; each is a text or messages."""
    if row.get("label") is False:  # KTO's mark; nothing else tells such rows apart
        raise UnusableError("with label false: its completion is undesirable")
    prompt, completion = row["prompt"], row["completion"]
    asked = (_said("user", prompt),) if isinstance(prompt, str) else _messages(prompt)
    asked = tuple({**message, "weight": 0} if message["role"] == "assistant" else message for message in asked)
    return asked + ((_said("assistant", completion),) if isinstance(completion, str) else _messages(completion))


_FORMS: dict[tuple[str, ...], Callable[[Mapping[str, Any]], tuple[Message, ...]]] = {
    ("messages",): lambda row: _messages(row["messages"]),
    ("instruction", "output"): _from_alpaca,
    ("prompt", "completion"): _from_prompt,
    ("conversations",): lambda row: _messages(row["conversations"]),
}
_BESIDE = {"instruction": ("input", "history")}  # optional


def _messages(values: Any) -> tuple[Message, ...]:
    if not isinstance(values, Sequence | None) or isinstance(values, str):
        raise UnusableError(f"with {type(values).__name__} instead of a list of messages")
    if not values:
        raise UnusableError("without messages")
    return tuple(_message(value) for value in values)


def _message(value: Any) -> Message:
    """Read one message, with a chat template's field names or ShareGPT's."""
    if not isinstance(value, Mapping):
        raise UnusableError("with a message that is not an object")
    given = {key: field for key, field in value.items() if field is not None}
    fields = ", ".join(map(str, given)) or "none"
    role_key = "role" if "role" in given else "from"
    if role_key not in given:
        raise UnusableError(f"with a message without role or from (its fields: {fields})")
    speaker = str(given.pop(role_key))
    role = _ROLES.get(speaker)
    if role is None:
        raise UnusableError(f"with a message of the unknown {role_key} {speaker!r}")
    content_key = next((key for key in _CONTENTS if key in given), None)
    if content_key is None and not (role == "assistant" and given.get("tool_calls")):
        raise UnusableError(f"with a message without content, value or text (its fields: {fields})")
    content = given.pop(content_key) if content_key else ""
    if speaker in _CALLING_ROLES:
        given["tool_calls"], content = _json(content, f"with a {speaker} that is not JSON"), ""
    for name in _UNSUPPORTED_FIELDS:
        if given.pop(name, None):
            raise UnusableError(f"with a message's {name}, which is not supported (docs/conversations.md)")
    said = {name: field for name, field in given.items() if not _is_empty(field)}
    message = {"role": role, "content": _content(content), **said}
    return _with_reasoning(_with_calls(_with_weight(message)))


def _content(content: Any) -> str:
    """Return a text, or the joined texts of a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise UnusableError(f"with {type(content).__name__} instead of text in a message")
    return "".join(_part(part) for part in content)


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise UnusableError(f"with a part of type {kind!r} in a message; only text parts are read")
    return text


def _with_weight(message: Message) -> Message:
    weights = {name: message.pop(name) for name in _WEIGHTS if name in message}
    for name, weight in weights.items():
        if weight not in (0, 1):
            raise UnusableError(f"with a message of {name} {weight!r}; use 0 or 1")
    # axolotl would learn that message. The other two concern answers only, but many rows give them to all messages.
    if (asked := weights.get("train")) and message["role"] != "assistant":
        raise UnusableError(f"with train {asked!r} on a message of the {message['role']}; only answers are learned")
    if message["role"] == "assistant" and not all(weights.values()):
        message["weight"] = 0
    return message


def _with_reasoning(message: Message) -> Message:
    """Store a thought under the name that chat templates read (transformers fills in the older names from it)."""
    thoughts = {name: message.pop(name) for name in _REASONING if name in message}
    thought = next((thought for thought in thoughts.values() if thought), "")
    if not isinstance(thought, str):
        raise UnusableError(f"with {type(thought).__name__} instead of text in a message's {next(iter(thoughts))}")
    return {**message, "reasoning_content": thought} if thought else message


def _with_calls(message: Message) -> Message:
    """Convert calls to the form that chat templates read: a list, with arguments as an object."""
    calls = message.pop("tool_calls", None)
    if not calls:
        return message
    calls = _without_none(calls if isinstance(calls, list) else [calls])
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UnusableError("with tool_calls without a function's name")
        arguments = function.get("arguments", {})
        is_text = isinstance(arguments, str)
        function["arguments"] = (
            _json(arguments, "with tool_calls whose arguments are not JSON") if is_text else arguments
        )
    return {**message, "tool_calls": [call if "function" in call else _function(call) for call in calls]}


def _function(call: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": call}


def _with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    if not system or messages[0] == {"role": "system", "content": system}:
        return messages
    if messages[0]["role"] in ("system", "developer"):
        raise UnusableError("with a system column and another system message")
    return ({"role": "system", "content": system}, *messages)


def _tools(tools: Any) -> tuple[dict[str, Any], ...]:
    if isinstance(tools, str) and tools.strip():
        tools = _json(tools, "with tools that are not JSON")
    if _is_empty(tools):
        return ()
    if isinstance(tools, list):
        tools = [_json(tool, "with tools that are not JSON") if isinstance(tool, str) else tool for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UnusableError("with tools that are not a list of objects")
    return tuple(_without_none(tool if "function" in tool or "name" not in tool else _function(tool)) for tool in tools)


def _without_none(value: Any) -> Any:
    """Drop the empty fields that Parquet adds if rows have objects with different fields."""
    if isinstance(value, Mapping):
        return {key: _without_none(field) for key, field in value.items() if field is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def _json(text: Any, complaint: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise UnusableError(complaint) from error


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


def _no_conversation(text: str) -> Conversation:
    raise UnreadableError("not a table of conversations (JSON, JSONL or Parquet)")


def _missing(columns: set[str]) -> str:
    if _form(columns):
        return ""
    if {"chosen", "rejected"} <= columns:
        return (
            "columns of a conversation but those of preferences, which are not trained on: keep only chosen, as "
            "completion beside prompt or, if it is a list, as messages"
        )
    return "columns of a conversation"


_REMEDY = (
    "each row needs messages, instruction and output, prompt and completion, or conversations (docs/conversations.md)"
)
CONVERSATIONS = ItemKind(
    name="conversation",
    remedy=_REMEDY,
    column_remedy=_REMEDY,
    missing=_missing,
    of_row=_conversation,
    of_text=_no_conversation,
)
"""Conversations as rows of a table, in the forms of `Conversation`."""
