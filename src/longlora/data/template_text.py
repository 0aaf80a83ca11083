"""Render conversations with a chat template, find its marks of answers, and detect what it omits."""

import copy
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from longlora.data.conversations import Message

Span = tuple[int, int]
"""Index of the first character, and of the one after the last."""

Tools = Sequence[dict[str, Any]]

# A template is code: unexpected messages may raise any of these.
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, AttributeError, LookupError, RecursionError)

_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_KNOWN_FIELDS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "weight")


class UnusableConversationError(Exception):
    """A conversation cannot be trained on; the message completes "conversations …"."""


@dataclass(frozen=True)
class ChatWriter:
    """Writes messages with a tokenizer's chat template, and the tools that an assistant may call."""

    tokenizer: PreTrainedTokenizerBase
    tools: Tools = ()

    @property
    def template(self) -> str:
        """The template that `apply_chat_template` uses; besides the default, there may be one for tools."""
        return self.tokenizer.get_chat_template(tools=list(self.tools) or None)

    def write(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """Write messages, up to where an answer begins if `ask`.

        Raises:
            UnusableConversationError: the template refuses them.
        """
        try:
            return self._apply(messages, ask)
        except _TEMPLATE_ERRORS as error:
            # DeepSeek's template concatenates arguments with text, so they must be JSON text.
            if isinstance(error, TypeError) and any("tool_calls" in message for message in messages):
                with suppress(*_TEMPLATE_ERRORS):
                    return self._apply([_with_json_arguments(message) for message in messages], ask)
            raise UnusableConversationError(f"that the model's chat template refuses ({error})") from error

    def write_marked(self, messages: Sequence[Message], marked: str) -> tuple[str, list[Span]] | None:
        """Write with a template that has `{% generation %}`, and return the text and its marks; None if it refuses."""
        try:
            texts, spans = render_jinja_template(
                [_unweighted(messages)],
                tools=list(self.tools) or None,
                chat_template=marked,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except _TEMPLATE_ERRORS:
            return None
        return texts[0], [(start, end) for start, end in spans[0] if start < end]

    def _apply(self, messages: Sequence[Message], ask: bool) -> str:
        return self.tokenizer.apply_chat_template(
            _unweighted(messages), tools=list(self.tools) or None, tokenize=False, add_generation_prompt=ask
        )


@lru_cache(maxsize=4)
def marked_template(tokenizer: PreTrainedTokenizerBase, template: str) -> str | None:
    """Return a template with marks around answers: the given one, or TRL's training template for it, or None.

    Marks that exclude the token that ends the turn do not count.
    """
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    if has_generation_markers(template):
        marked = template
    else:
        plain = copy.copy(tokenizer)
        plain.chat_template = template
        try:
            marked = get_training_chat_template(plain)
        except _TEMPLATE_ERRORS:  # a ValueError if TRL does not know the template
            return None
    return marked if is_chat_template_stop_token_trained(tokenizer, chat_template=marked) else None


def check_written(writer: ChatWriter, messages: Sequence[Message], text: str) -> tuple[int, list[str]]:
    """Check that a text contains everything in its messages: a missing content, thought, call or tool is an error.

    Missing names are only reported, and so are missing thoughts of earlier answers: templates of reasoning models omit
    those, in use as in training.

    Returns:
        The number of omitted thoughts, and the omitted fields of messages.

    Raises:
        UnusableConversationError: the template omits something, which is named.
    """
    marked = [_mark(index, message) for index, message in enumerate(messages)]
    written = ChatWriter(writer.tokenizer, [_mark_tool(tool) for tool in writer.tools]).write(marked).lower()
    if writer.tools and "mark0tool" not in written:
        raise UnusableConversationError("with tools that the model's chat template does not write")
    num_dropped, unread = 0, set()
    for index, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if message.get("tool_calls") and f"mark{index}call" not in written:
            raise UnusableConversationError("with tool_calls that the model's chat template does not write")
        if content.strip() and f"mark{index}content" not in written:
            beside = " beside tool_calls" if message.get("tool_calls") else ""
            raise UnusableConversationError(f"whose {role} message{beside} the model's chat template does not write")
        # Tool results may be written as JSON, and a thought within an answer may be moved.
        answer = _THOUGHT.sub("", content).rpartition("</think>")[2] if role == "assistant" else content
        if role != "tool" and answer.strip() not in text:
            raise UnusableConversationError("that the model's chat template does not write as they are")
        if "reasoning_content" in message and f"mark{index}thought" not in written:
            if not _writes_thoughts(writer.tokenizer, writer.template):
                raise UnusableConversationError("with reasoning_content that the model's chat template does not write")
            num_dropped += 1
        num_dropped += role == "assistant" and any(t.strip() not in text for t in _THOUGHT.findall(content))
        if "name" in message and role != "tool" and f"mark{index}name" not in written:
            unread.add("name")
        unread |= {name for name in message if name not in _KNOWN_FIELDS and name not in writer.template}
    return num_dropped, sorted(unread)


def with_functions(message: Message, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Message:
    """Return the message with changed fields in the functions that it calls."""
    calls = [{**call, "function": {**call["function"], **change(call["function"])}} for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


@lru_cache(maxsize=4)
def _writes_thoughts(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    del template  # the tokenizer's own; only part of the cache key
    asked = {"role": "user", "content": "Why?"}
    answer = {"role": "assistant", "content": "So.", "reasoning_content": "Mark0Thought"}
    with suppress(UnusableConversationError):
        return "Mark0Thought" in ChatWriter(tokenizer).write([asked, answer])
    return False


def _mark(index: int, message: Message) -> Message:
    """Fill a message's fields with words that can be recognized in the text."""
    words = {"content": "Content", "reasoning_content": "Thought", "name": "Name"}
    # Empty content stays empty, and missing fields stay missing.
    given = [field for field in words if field in message and (message[field] or field != "content")]
    marked = message | {field: f"Mark{index}{words[field]}" for field in given}
    return with_functions(marked, lambda _: {"name": f"Mark{index}Call"}) if message.get("tool_calls") else marked


def _mark_tool(tool: dict[str, Any]) -> dict[str, Any]:
    if isinstance(tool.get("function"), dict):
        return {**tool, "function": {**tool["function"], "name": "Mark0Tool"}}
    return {**tool, "name": "Mark0Tool"}


def _unweighted(messages: Sequence[Message]) -> list[Message]:
    return [{name: value for name, value in message.items() if name != "weight"} for message in messages]


def _with_json_arguments(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    return with_functions(message, lambda function: {"arguments": _as_json(function.get("arguments", {}))})


def _as_json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
