"""How long a text is in tokens, and where it is cut so that each section fits a window."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from longlora.errors import ConfigError

_BORDERS = ("\n\n", "\n", ". ", " ")


class TokenCounter(Protocol):
    """Measures texts in tokens."""

    def starts(self, text: str) -> Sequence[int]:
        """Characters at which the text's tokens begin, ascending."""

    def count(self, text: str) -> int:
        """Tokens of a text."""


@dataclass(frozen=True)
class EstimatedTokens:
    """Takes every token for the same number of characters."""

    chars_per_token: float

    def starts(self, text: str) -> Sequence[int]:
        """Characters at which the text's tokens begin, ascending."""
        return [int(number * self.chars_per_token) for number in range(self.count(text))]

    def count(self, text: str) -> int:
        """Tokens of a text, rounded up."""
        return math.ceil(len(text) / self.chars_per_token)


class TokenizerTokens:
    """Counts with a tokenizer."""

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                f"the tokenizer of {name!r} cannot say where its tokens stand in a text; choose another with "
                "--tokenizer, or leave it out and set --chars-per-token"
            )
        self._tokenizer = tokenizer

    def starts(self, text: str) -> Sequence[int]:
        """Characters at which the text's tokens begin, ascending."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [start for start, _ in encoded["offset_mapping"]]

    def count(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def cut_sections(text: str, starts: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Cut a text into sections of at most `room` tokens and about the same length, as `(begin, end)` in characters.

    The cuts are looked for before the even length is reached: between paragraphs, else lines, sentences, words.
    """
    sections = []
    begin, token = 0, 0
    while (left := len(starts) - token) > room:
        even = math.ceil(left / math.ceil(left / room))
        end = _border(text, starts[token + even // 2], starts[token + even])
        end = max(end, begin + 1)  # tokens of one character may share their place
        sections.append((begin, end))
        begin, token = end, bisect_left(starts, end)
    if begin < len(text):
        sections.append((begin, len(text)))
    return sections


def cut_length(text: str, starts: Sequence[int], most: int) -> int:
    """Characters of the longest beginning of at most `most` tokens that ends between paragraphs, lines or words."""
    if len(starts) <= most:
        return len(text)
    return max(1, _border(text, starts[most // 2], starts[most]))


def _border(text: str, low: int, high: int) -> int:
    for border in _BORDERS:
        if (place := text.rfind(border, low, high)) >= 0:
            return place + len(border)
    return high


def spread(count: int, most: int) -> list[int]:
    """Choose at most `most` of `count` places, evenly: the middles of as many equal parts."""
    if count <= most:
        return list(range(count))
    return [int((number + 0.5) * count / most) for number in range(most)]
