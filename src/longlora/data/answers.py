"""Locate answers in the output of a chat template, by the template's marks or by a search.

The marks are `{% generation %}` in the model's own template, or in TRL's training template if that writes the same
text. Otherwise answers are searched for: a message is rendered again with different content, and the text that changes
is the message. What the template writes to ask for an answer precedes it, and what it writes between an answer and
whatever follows ends it.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from transformers import PreTrainedTokenizerBase

from longlora.data.conversations import Message, is_learned
from longlora.data.template_text import ChatWriter, Span, UnusableConversationError, marked_template, with_functions
from longlora.errors import ConfigError

Method = Literal["marks", "search"]

# Words that occur in no template.
_QUESTION, _ANSWER = "0QUESTION0", "0ANSWER0"


@dataclass(frozen=True)
class Answers:
    """The text to train on, and the spans of its answers, from their first character to the end of their turn."""

    text: str
    spans: list[Span]
    method: Method
    are_ended: bool  # every answer ends with a token that ends the turn


def find_answers(
    writer: ChatWriter, messages: Sequence[Message], text: str, *, method: Method | None = None
) -> Answers:
    """Find the answers to be learned in `text`, the writer's output, by marks if there are any.

    If the template writes nothing after the last answer, but elsewhere ends answers with another role's token (GLM),
    that token is appended to the text.

    Raises:
        UnusableConversationError: the messages cannot be told apart in the text.
        ConfigError: the template does not write answers.
    """
    marked = marked_template(writer.tokenizer, writer.template) if method != "search" else None
    if marked is not None and (found := writer.write_marked(messages, marked)):
        longer, spans = found
        if longer == text or (longer.startswith(text) and spans and spans[-1][0] < len(text) < spans[-1][1]):
            if not all(is_learned(m) for m in messages if m["role"] == "assistant"):
                starts = [start for start, _ in places_of(writer, messages, text)]
                # A message may have several spans: a span belongs to the last message that begins before its end.
                spans = [span for span in spans if is_learned(messages[max(bisect_left(starts, span[1]) - 1, 0)])]
            return Answers(longer, spans, "marks", are_ended=True)
    return _search(writer, messages, text)


def places_of(writer: ChatWriter, messages: Sequence[Message], text: str) -> list[Span]:
    """Return the span of each message in the text: the part that changes with its content.

    Raises:
        UnusableConversationError: the spans overlap or are out of order.
    """
    if at_once := _places_at_once(writer, messages, text):
        return at_once
    places: list[Span] = []
    for index in reversed(range(len(messages))):
        places.append(place_of(writer, messages, text, index, before=places[-1][0] if places else None))
    return places[::-1]


def place_of(
    writer: ChatWriter, messages: Sequence[Message], text: str, index: int, *, before: int | None = None
) -> Span:
    """Return the span of one message in the text, which must end by `before`, where the next one begins.

    Raises:
        UnusableConversationError: the message cannot be told apart from others.
    """
    other = _unused_character(text)
    for changed in _changed(messages[index], other):
        try:
            rewritten = writer.write([*messages[:index], changed, *messages[index + 1 :]])
        except UnusableConversationError:
            continue
        start = _common_length(text, rewritten)
        most = min(len(text), len(rewritten)) - start
        end = len(text) - min(most, _common_length(text[::-1], rewritten[::-1]))
        if other in rewritten and (before is None or end <= before):
            return start, end
    raise UnusableConversationError("whose messages cannot be told apart in the output of the model's chat template")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that answers can be located among a tokenizer's tokens.

    Raises:
        ConfigError: it cannot map tokens to characters, or its chat template does not write answers.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{type(tokenizer).__name__} cannot map its tokens to characters, which fine-tuning on answers needs; use "
            "the model's fast tokenizer (tokenizer.json)"
        )
    try:
        _frame(tokenizer, ChatWriter(tokenizer).template)
    except UnusableConversationError as error:
        raise ConfigError(
            f"the tokenizer's chat template cannot render two plain questions and answers ({error}); fix it"
        ) from error


def _search(writer: ChatWriter, messages: Sequence[Message], text: str) -> Answers:
    frame = _frame(writer.tokenizer, writer.template)
    places = places_of(writer, messages, text)
    spans, are_ended = [], True
    for index, message in enumerate(messages):
        if not is_learned(message):
            continue
        start, end = places[index]
        opened = text.rfind(frame.opening, places[index - 1][1] if index else 0, start) if frame.opening else -1
        begin = opened + len(frame.opening) if opened >= 0 else start
        if is_last := index == len(messages) - 1:
            length, is_ended = frame.end_of_last(text[end:])
        else:
            length, is_ended = frame.end_of(text[end : places[index + 1][0]], messages[index + 1]["role"])
            if not is_ended and message.get("tool_calls"):
                raise UnusableConversationError("whose tool_calls end where a search does not find it")
        are_ended &= is_ended or frame.ends_within(text, begin, end)
        spans.append((begin, end + length))
        if is_last and not is_ended and frame.stop:
            text, spans[-1], are_ended = text + frame.stop, (begin, len(text) + len(frame.stop)), True
    return Answers(text, spans, "search", are_ended)


@dataclass(frozen=True)
class _Frame:
    """What a template writes around answers."""

    opening: str  # before an answer that it asks for; the opening of a thought belongs to the answer
    closing: str  # after every answer; empty if it depends on what follows
    stop: str  # the token that ends other answers, if the template writes none after the last; otherwise empty
    tokens: re.Pattern[str]  # the tokenizer's added tokens

    def end_of(self, gap: str, next_role: str) -> tuple[int, bool]:
        """Return how many characters before the next message belong to the answer, and whether they end the turn."""
        if self.closing and (found := gap.find(self.closing)) >= 0:
            return found + len(self.closing), True
        first = self.tokens.search(gap)
        if self.closing or first is None or next_role == "assistant":
            return 0, False
        return first.end(), True

    def end_of_last(self, gap: str) -> tuple[int, bool]:
        """Return the same for the text after the last answer, all of which is its own except a prompt for another."""
        if self.opening and self.opening in gap:
            gap = gap[: gap.index(self.opening)]
        if self.stop and not gap.strip():
            return len(gap.rstrip()), False
        return len(gap), bool(self.tokens.search(gap)) or bool(self.closing.strip() and self.closing in gap)

    def ends_within(self, text: str, begin: int, end: int) -> bool:
        """Return whether the part that changes with the answer ends with a token, as calls do in some templates."""
        return any(match.end() >= end for match in self.tokens.finditer(text, begin, min(len(text), end + 40)))


@lru_cache(maxsize=4)
def _frame(tokenizer: PreTrainedTokenizerBase, template: str) -> _Frame:
    del template  # the tokenizer's own; only part of the cache key
    writer, tokens = ChatWriter(tokenizer), _added_tokens(tokenizer)
    question, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
    parts = writer.write([question, answer, question, answer]).split(_ANSWER)
    if len(parts) != 3:
        raise ConfigError("the tokenizer's chat template does not write the assistant's messages; use another")
    between, last = parts[1].partition(_QUESTION)[0], parts[2]
    asking = writer.write([question], ask=True).rpartition(_QUESTION)[2]
    asked = writer.write([question]).rpartition(_QUESTION)[2]
    opening = asking if asking == asked else asking[len(_common(asking, asked, tokens)) :]
    stop = tokens.match(between.lstrip())
    return _Frame(
        opening=opening.partition("<think>")[0],
        closing=_common(between, last, tokens),
        stop=stop.group() if stop and not last.strip() else "",
        tokens=tokens,
    )


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Match any token of the added vocabulary, except those for white space."""
    words = {word for word in (*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens) if word.strip()}
    return re.compile("(" + ("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)") + ")")


def _common(one: str, other: str, tokens: re.Pattern[str]) -> str:
    """Return the common prefix of two texts, in whole tokens of the added vocabulary and whole texts between them."""
    if one.startswith(other):
        return other
    common = ""
    for a, b in zip(tokens.split(one), tokens.split(other), strict=False):
        if a != b:
            return common + (min(a, b, key=len) if a.startswith(b) or b.startswith(a) else "")
        common += a
    return common


def _places_at_once(writer: ChatWriter, messages: Sequence[Message], text: str) -> list[Span] | None:
    """Find all spans in one rendering, at a cost that grows only with the length of the text.

    Rendering placeholders for all contents shows what the template writes between them. None unless the text is exactly
    that and the contents, unchanged or stripped: a template may look into contents, and writes calls and thoughts
    apart from them.
    """
    if any("tool_calls" in message or "reasoning_content" in message for message in messages):
        return None
    boundary = _unused_character(text)
    numbered = [{**message, "content": f"{boundary}{index}{boundary}"} for index, message in enumerate(messages)]
    try:
        pieces = writer.write(numbered).split(boundary)
    except UnusableConversationError:
        return None
    if pieces[1::2] != [str(index) for index in range(len(messages))] or not text.startswith(pieces[0]):
        return None
    places, end = [], len(pieces[0])
    for message, following in zip(messages, pieces[2::2], strict=True):
        content = message["content"]
        forms = (content, content.strip(), content.lstrip(), content.rstrip())
        form = next((form for form in forms if text.startswith(form + following, end)), None)
        if form is None:
            return None
        places.append((end, end + len(form)))
        end += len(form) + len(following)
    return places if end == len(text) else None


def _unused_character(text: str) -> str:
    return next(char for char in map(chr, range(0xE000, 0xF900)) if char not in text)


def _changed(message: Message, other: str) -> list[Message]:
    """Return the message with other content only and, in case that is refused, with other arguments in its calls."""
    bare = {"role": message["role"], "content": other}
    bare |= {field: message[field] for field in ("name", "tool_call_id") if field in message}
    if not message.get("tool_calls"):
        return [bare]
    kept = with_functions(message, lambda _: {"arguments": {other: other}})
    return [bare, kept | {field: other for field in ("content", "reasoning_content") if message.get(field)}]


def _common_length(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts, by bisection: a text may be a book."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
