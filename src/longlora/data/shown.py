"""Shows a person what of a conversation is learned: the one look that finds a wrong mask."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from longlora.data.encode import IGNORED

# Of a document that is read, this much of its beginning and of its end is shown.
_SHOWN_TOKENS = 120


def show_example(
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Sequence[int],
    labels: Sequence[int],
    *,
    console: Console | None = None,
) -> None:
    """Print a conversation as the model is given it, what is learned in green, or between ⟦ and ⟧ without colours.

    Args:
        tokenizer: that made the ids.
        input_ids: of one conversation.
        labels: one for each, `IGNORED` where nothing is learned.
        console: by default on stderr.
    """
    console = console or Console(stderr=True)
    left, right = ("", "") if console.color_system else ("⟦", "⟧")
    example = Text()
    for is_learned, words in _runs(tokenizer, input_ids, labels):
        if is_learned:
            example.append(f"{left}{words}{right}", style="bold green")
        else:
            example.append(words, style="dim")
    console.print(
        Text("the first conversation, what is learned ").append("in green" if not left else "in ⟦ ⟧") + Text(":")
    )
    console.print(example, soft_wrap=True)


def _runs(
    tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int]
) -> Iterator[tuple[bool, str]]:
    for is_learned, tokens in groupby(zip(input_ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED):
        ids = [token for token, _ in tokens]
        if is_learned or len(ids) <= 2 * _SHOWN_TOKENS:
            yield is_learned, tokenizer.decode(ids)
        else:
            left_out = f" … {len(ids) - 2 * _SHOWN_TOKENS:,} tokens … "
            yield False, tokenizer.decode(ids[:_SHOWN_TOKENS]) + left_out + tokenizer.decode(ids[-_SHOWN_TOKENS:])
