"""What a chat template writes of a conversation, where it marks the answers, and what it does not write."""

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
"""First character, and the one after the last."""

Tools = Sequence[dict[str, Any]]

# A template is code: what it does not expect in a message may raise anything of these.
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, AttributeError, LookupError)

_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_KNOWN_FIELDS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "weight")


class UnusableConversationError(Exception):
    """A conversation cannot be trained on; the message completes "conversations …"."""


@dataclass(frozen=True)
class ChatWriter:
    """Writes messages by a tokenizer's chat template, with the tools that an assistant may call."""

    tokenizer: PreTrainedTokenizerBase
    tools: Tools = ()

    @property
    def template(self) -> str:
        """The template that `apply_chat_template` takes; there may be one for tools beside the default."""
        return self.tokenizer.get_chat_template(tools=list(self.tools) or None)

    def write(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """Write messages, up to where an answer begins if `ask`.

        Raises:
            UnusableConversationError: the template does not take them.
        """
        try:
            return self._apply(messages, ask)
        except _TEMPLATE_ERRORS as error:
            # DeepSeek's template joins arguments to text, and takes them as JSON only.
            if isinstance(error, TypeError) and any("tool_calls" in message for message in messages):
                with suppress(*_TEMPLATE_ERRORS):
                    return self._apply([_with_json_arguments(message) for message in messages], ask)
            raise UnusableConversationError(f"that the model's chat template refuses ({error})") from error

    def write_marked(self, messages: Sequence[Message], marked: str) -> tuple[str, list[Span]] | None:
        """Write by a template with `{% generation %}`, and tell what it marks; None if it does not take them."""
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
    """The template with marks around answers: itself, or TRL's training template for it; None if there is none.

    Marks that leave out the token that ends the turn do not count.
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
        except _TEMPLATE_ERRORS:  # a ValueError where TRL does not know the template
            return None
    return marked if is_chat_template_stop_token_trained(tokenizer, chat_template=marked) else None


def check_written(writer: ChatWriter, messages: Sequence[Message], text: str) -> tuple[int, list[str]]:
    """See that a text has all that its messages say; contents, thoughts, calls and tools are written or refused.

    Names that the template does not write are told. So are thoughts of earlier answers: templates of models that think
    leave them out, in use as in training.

    Returns:
        How many thoughts are left out, and the fields of messages that are.

    Raises:
        UnusableConversationError: the template does not write something, which is named.
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
        # What tools return may be written as JSON, and a thought within an answer in another place.
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
    """The message with other fields in the functions that it calls."""
    calls = [{**call, "function": {**call["function"], **change(call["function"])}} for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


@lru_cache(maxsize=4)
def _writes_thoughts(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    del template  # the tokenizer's; another one may write otherwise
    asked = {"role": "user", "content": "Why?"}
    answer = {"role": "assistant", "content": "So.", "reasoning_content": "Mark0Thought"}
    with suppress(UnusableConversationError):
        return "Mark0Thought" in ChatWriter(tokenizer).write([asked, answer])
    return False


def _mark(index: int, message: Message) -> Message:
    """Put words into a message's fields that are found again in the text."""
    words = {"content": "Content", "reasoning_content": "Thought", "name": "Name"}
    # An empty content stays empty, and a field that is not there away.
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
