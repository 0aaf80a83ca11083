"""Encode a conversation as token ids, with labels on the tokens of its answers and on no others.

The chat template's text is tokenized as a whole, so the ids are those that the model will read in use; the characters
that a token stands for show whether it belongs to an answer. A conversation longer than the context is cut in the
middle of the longest message from a user or a tool, which contains the document. The lines around it, where the
question is, and the answers are never cut.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from longlora.data.answers import Method, find_answers, place_of
from longlora.data.conversations import Message
from longlora.data.template_text import ChatWriter, Span, Tools, UnusableConversationError, check_written

IGNORED = -100
"""Label of a token that is not learned (torch's `ignore_index`)."""

# How much of the start and of the end of a text that is not learned is shown.
_SHOWN_TOKENS = 120


@dataclass(frozen=True, kw_only=True)
class EncodedConversation:
    """Token ids, and labels: the same ids within answers, `IGNORED` elsewhere."""

    input_ids: list[int]
    labels: list[int]
    num_cut: int  # tokens taken out of the middle of the longest message
    method: Method  # how the answers were found
    are_ended: bool  # every answer is learned to the end of its turn
    num_thoughts_dropped: int  # of earlier answers, which the template omits, as it does in use
    unread: tuple[str, ...]  # fields of messages that the template does not read


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    context_length: int,
    tools: Tools = (),
    method: Method | None = None,
) -> EncodedConversation:
    """Tokenize messages with the tokenizer's chat template.

    An answer's labels run from its first token through the token that ends the turn and the white space that the
    template writes after it. What the template writes to ask for an answer is not learned, unless TRL marks it. A token
    with characters both inside and outside an answer is learned.

    Messages and tools are those of a `Conversation`; the tokenizer has a chat template (`ensure_chat_template`).
    `method="search"` ignores marks; otherwise marks are used if there are any.

    Raises:
        UnusableConversationError: the template refuses the messages or omits something in them, the answers and
            questions alone exceed the context, or no token of an answer is left.
        ConfigError: the tokenizer cannot map tokens to characters, or its template omits answers.
    """
    writer = ChatWriter(tokenizer, tools)
    written = writer.write(messages)
    num_thoughts_dropped, unread = check_written(writer, messages, written)
    answers = find_answers(writer, messages, written, method=method)
    encoding = tokenizer(answers.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = encoding["input_ids"]
    starts, ends = _characters(encoding["offset_mapping"])
    labels = [IGNORED] * len(ids)
    for begin, end in answers.spans:
        for index in range(bisect_right(ends, begin), bisect_left(starts, end)):
            labels[index] = ids[index]
    cut = range(0)
    if (excess := len(ids) - context_length) > 0:
        cut = _cut(starts, _cuttable(writer, messages, written), excess)
        if any(label != IGNORED for label in labels[cut.start : cut.stop]):
            raise UnusableConversationError("whose document cannot be told apart from an answer")
        del ids[cut.start : cut.stop], labels[cut.start : cut.stop]
    if all(label == IGNORED for label in labels[1:]):
        raise UnusableConversationError("without a token of an answer")
    return EncodedConversation(
        input_ids=ids,
        labels=labels,
        num_cut=len(cut),
        method=answers.method,
        are_ended=answers.are_ended,
        num_thoughts_dropped=num_thoughts_dropped,
        unread=tuple(unread),
    )


def _characters(offsets: Sequence[Span]) -> tuple[list[int], list[int]]:
    """Return where each token's characters begin and end.

    Some tokenizers omit a token's leading white space from its offsets, so a token begins where the previous one ends.
    Tokens that share a character, such as its bytes, all begin with it.
    """
    ends = list(accumulate((end for _, end in offsets), max))
    starts = [min(start, before) for (start, _), before in zip(offsets, [0, *ends], strict=False)]
    return starts, ends


def _cut(starts: Sequence[int], cuttable: Span, excess: int) -> range:
    """Choose `excess` tokens from the middle, or a few more to keep characters of several tokens whole."""
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


def _cuttable(writer: ChatWriter, messages: Sequence[Message], text: str) -> Span:
    """Return the part of the longest message that may be cut: all but its first and last line, where questions are.

    If these two lines are most of the message, all but its first and last hundred characters may be cut.
    """
    asked = [index for index, message in enumerate(messages) if message["role"] in ("user", "tool")]
    if not asked:
        raise UnusableConversationError("whose answers alone exceed context_length")
    longest = max(asked, key=lambda index: len(messages[index]["content"]))
    start, end = place_of(writer, messages, text, longest)
    lines = [(start + line.start(), start + line.end()) for line in re.finditer(r"[^\n]*\S[^\n]*", text[start:end])]
    if len(lines) > 2 and lines[-1][0] - lines[0][1] > (end - start) // 2:
        return lines[0][1], lines[-1][0]
    return min(start + 100, end), max(end - 100, start)


def show_example(
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Sequence[int],
    labels: Sequence[int],
    *,
    console: Console | None = None,
) -> None:
    """Print a conversation as the model sees it, with what is learned in green, or between ⟦ and ⟧ without colors.

    The default console is stderr.
    """
    console = console or Console(stderr=True)
    left, right, how = ("", "", "in green") if console.color_system else ("⟦", "⟧", "in ⟦ ⟧")
    example = Text()
    for is_learned, pairs in groupby(zip(input_ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED):
        ids = [token for token, _ in pairs]
        if is_learned:
            example.append(f"{left}{tokenizer.decode(ids)}{right}", style="bold green")
            continue
        if (num_left_out := len(ids) - 2 * _SHOWN_TOKENS) > 0:
            first, last = tokenizer.decode(ids[:_SHOWN_TOKENS]), tokenizer.decode(ids[-_SHOWN_TOKENS:])
            words = f"{first} … {num_left_out:,} tokens … {last}"
        else:
            words = tokenizer.decode(ids)
        example.append(words, style="dim")
    console.print(Text(f"the first conversation, what is learned {how}:"))
    console.print(example, soft_wrap=True)
