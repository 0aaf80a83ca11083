"""Writes a conversation out as token ids, with a label on every token of its answers and on no other.

The text is the chat template's, tokenised once and whole, so that the ids are those that the model will read in use;
which of them belong to answers follows from the characters they stand for. A conversation longer than the context is
cut in the middle of its longest message, which holds the document; the lines around it, where the question stands, and
the answers are never cut.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from longlora.data.conversations import Message
from longlora.errors import ConfigError

IGNORED = -100
"""Label of a token that is not learned (torch's `ignore_index`)."""

# Words that no template writes.
_QUESTION, _ANSWER = "0QUESTION0", "0ANSWER0"

Span = tuple[int, int]


class UnusableConversationError(Exception):
    """A conversation cannot be trained on; the message completes "conversations …"."""


@dataclass(frozen=True, kw_only=True)
class EncodedConversation:
    """Token ids, and the ids again as labels where an answer stands, `IGNORED` elsewhere."""

    input_ids: list[int]
    labels: list[int]
    num_cut: int
    """Tokens taken out of the middle of the longest message."""


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, context_length: int
) -> EncodedConversation:
    """Tokenise messages by the tokenizer's chat template.

    An answer's labels run from its first token (what the template's generation prompt ends with is not learned) to the
    token that ends the turn, that one included.

    Args:
        tokenizer: with a chat template; `ensure_chat_template` gives it the paper's if it has none.
        messages: of the roles system, user and assistant.
        context_length: most tokens of the result.

    Raises:
        UnusableConversationError: the template does not take the messages, the answers and questions alone exceed
            the context, or no token of an answer is left.
        ConfigError: the tokenizer cannot tell which characters a token stands for, or its template hides answers.
    """
    text, places = _write(tokenizer, messages)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    answers = _answer_spans(tokenizer, text, messages, places)
    labels = [IGNORED] * len(ids)
    starts = [start for start, _ in offsets]
    for begin, end in answers:
        for index in range(bisect_left(starts, begin), bisect_left(starts, end)):
            labels[index] = ids[index]
    excess = len(ids) - context_length
    cut = range(0)
    if excess > 0:
        cut = _cut(starts, _cuttable(text, messages, places), excess)
        del ids[cut.start : cut.stop], labels[cut.start : cut.stop]
    if all(label == IGNORED for label in labels[1:]):
        raise UnusableConversationError("without a token of an answer")
    return EncodedConversation(input_ids=ids, labels=labels, num_cut=len(cut))


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """See that a tokenizer's answers can be found again among its tokens.

    Raises:
        ConfigError: it does not tell characters, or its chat template does not write answers as they are.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{type(tokenizer).__name__} does not tell which characters its tokens stand for, which fine-tuning on "
            "answers needs; use the model's fast tokenizer (tokenizer.json)"
        )
    _frame(tokenizer, tokenizer.chat_template)


def _write(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """Write messages by the template, and tell where in the text the content of each stands.

    Found by marks in the contents' places: a short answer may well occur in the template's own words too.
    """
    marks = [f"0MESSAGE{index}0" for index in range(len(messages))]
    text = _apply(tokenizer, messages)
    marked = _apply(tokenizer, [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)])
    between = re.split("|".join(marks), marked)
    for contents in ([m["content"] for m in messages], [m["content"].strip() for m in messages]):
        if (
            len(between) == len(contents) + 1
            and text == "".join(chain(*zip(between, contents, strict=False))) + between[-1]
        ):
            places = []
            position = 0
            for before, content in zip(between, contents, strict=False):
                position += len(before)
                places.append((position, position + len(content)))
                position += len(content)
            return text, places
    raise UnusableConversationError("that the model's chat template does not write as they are")


def _apply(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, ask: bool = False) -> str:
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
    except TemplateError as error:
        raise UnusableConversationError(f"that the model's chat template refuses ({error})") from error


def _answer_spans(
    tokenizer: PreTrainedTokenizerBase, text: str, messages: Sequence[Message], places: Sequence[Span]
) -> list[Span]:
    opening, closing = _frame(tokenizer, tokenizer.chat_template)
    spans = []
    previous_end = 0
    for message, (start, end) in zip(messages, places, strict=True):
        if message["role"] == "assistant":
            opened = text.rfind(opening, previous_end, start) if opening else -1
            begin = opened + len(opening) if opened >= 0 else start
            ended = end + len(closing) if text.startswith(closing, end) else end
            spans.append((begin, ended))
        previous_end = end
    return spans


@lru_cache(maxsize=1)
def _frame(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, str]:
    """What the template writes before an answer when it asks for one, and after it."""
    question = [{"role": "user", "content": _QUESTION}]
    asked, asking = _apply(tokenizer, question), _apply(tokenizer, question, ask=True)
    before, answer, after = _apply(tokenizer, [*question, {"role": "assistant", "content": _ANSWER}]).partition(_ANSWER)
    if not answer:
        raise ConfigError("the tokenizer's chat template does not write the assistant's messages; give it another")
    opening = asking.removeprefix(asked)
    return (opening if opening != asking and opening in before else ""), after.rstrip()


def _cut(starts: Sequence[int], cuttable: Span, excess: int) -> range:
    """Choose `excess` tokens from the middle, or a few more where a character is made of several."""
    first, last = bisect_left(starts, cuttable[0]), bisect_left(starts, cuttable[1])
    begin = _whole_character(starts, first + max(0, last - first - excess) // 2)
    end = _whole_character(starts, begin + excess)
    if end > last:
        raise UnusableConversationError("whose question and answers leave no room for the document in context_length")
    return range(begin, end)


def _whole_character(starts: Sequence[int], index: int) -> int:
    while 0 < index < len(starts) and starts[index] == starts[index - 1]:
        index += 1
    return index


def _cuttable(text: str, messages: Sequence[Message], places: Sequence[Span]) -> Span:
    asked = [place for message, place in zip(messages, places, strict=True) if message["role"] != "assistant"]
    if not asked:
        raise UnusableConversationError("whose answers alone exceed context_length")
    return _between_first_and_last_line(text, *max(asked, key=lambda place: place[1] - place[0]))


def _between_first_and_last_line(text: str, start: int, end: int) -> Span:
    """The part of a message that may be cut: all between its first and its last line, where questions stand.

    A message that is mostly one of these lines is cut anywhere but in its first and last hundred characters.
    """
    lines = [(start + line.start(), start + line.end()) for line in re.finditer(r"[^\n]*\S[^\n]*", text[start:end])]
    if len(lines) > 2 and lines[-1][0] - lines[0][1] > (end - start) // 2:
        return lines[0][1], lines[-1][0]
    return min(start + 100, end), max(end - 100, start)
