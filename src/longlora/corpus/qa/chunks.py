"""Divide documents into sections that fit into a prompt, and count their tokens."""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, get_args

from longlora.corpus.extract import detect_kind
from longlora.corpus.qa.calls import CHAT_TOKENS
from longlora.corpus.qa.prompt_files import PromptSet
from longlora.corpus.qa.qa_settings import QASettings
from longlora.data.row_readers import ItemKind, text_kind
from longlora.errors import ConfigError
from longlora.support.choices import DocumentKind

HEADING_TOKENS = 16  # left free for the line above each section's notes

_SMALLEST_ROOM = 128  # tokens of text; it makes no sense to ask about fewer
_LONGEST_WHAT = "notes on all 9999 sections of a paper, in order, with passages copied from it"
_BOUNDARIES = ("\n\n", "\n", ". ", " ")


@dataclass(frozen=True)
class EstimatedTokens:
    """Estimates tokens as a fixed number of characters each."""

    chars_per_token: float

    def starts(self, text: str) -> Sequence[int]:
        """Return the positions, in characters, at which the text's tokens begin, ascending."""
        return [int(number * self.chars_per_token) for number in range(self.count(text))]

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, rounded up."""
        return math.ceil(len(text) / self.chars_per_token)


class TokenizerTokens:
    """Counts tokens with a tokenizer.

    Raises:
        ConfigError: the tokenizer does not provide the positions of its tokens in a text.
    """

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(
                f"the tokenizer of {name!r} does not provide the positions of its tokens in a text; choose another "
                "with --tokenizer, or leave it out and set --chars-per-token"
            )
        self._tokenizer = tokenizer

    def starts(self, text: str) -> Sequence[int]:
        """Return the positions, in characters, at which the text's tokens begin, ascending."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [start for start, _ in encoded["offset_mapping"]]

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, without special tokens."""
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


TokenCounter = EstimatedTokens | TokenizerTokens


class ShelfText(NamedTuple):
    """A text and, if `corpus from-pdf` extracted it, the kind of its document."""

    text: str
    kind: DocumentKind | None = None


def shelf_texts(column: str = "text") -> ItemKind[ShelfText]:
    """Return the kind of items that are texts as in training, with the document kind from their record."""

    def shelf_text(text: str, row: Mapping[str, Any]) -> ShelfText:
        kind = row.get("document_kind")
        return ShelfText(text, kind if kind in get_args(DocumentKind) else None)

    return replace(text_kind(column), columns=None).into(shelf_text)


@dataclass(frozen=True, kw_only=True)
class SectionedDocument:
    """A text to ask about, cut to the maximum length."""

    name: str
    text: str = field(repr=False)
    sha256: str  # of the text before it was cut
    kind: DocumentKind
    num_tokens: int
    is_cut: bool
    sections: tuple[tuple[int, int], ...]  # beginning and end of each, in characters; together they cover the text

    def section(self, number: int) -> str:
        """Return the text of a section, counted from 0."""
        begin, end = self.sections[number]
        return self.text[begin:end]


def read_in_sections(
    texts: Iterable[tuple[str, ShelfText]], *, settings: QASettings, counter: TokenCounter, room: Mapping[str, int]
) -> tuple[list[SectionedDocument], list[str]]:
    """Cut named texts to the maximum length and divide them into sections of `room` tokens, by kind of document.

    Returns:
        The documents, and the names of repeated texts, which are left out.
    """
    documents: dict[str, SectionedDocument] = {}
    repeated = []
    for name, (text, said) in texts:
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        if sha256 in documents:
            repeated.append(name)
            continue
        kind = (said or detect_kind(text)) if settings.kind == "auto" else settings.kind
        starts = counter.starts(text)
        most = settings.max_document_tokens or len(starts)
        if is_cut := len(starts) > most:
            text = text[: cut_length(text, starts, most)]
            starts = counter.starts(text)
        documents[sha256] = SectionedDocument(
            name=name,
            text=text,
            sha256=sha256,
            kind=kind,
            num_tokens=len(starts),
            is_cut=is_cut,
            sections=tuple(cut_sections(text, starts, room[kind])),
        )
    return list(documents.values()), repeated


def cut_sections(text: str, starts: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Cut a text into sections of at most `room` tokens and about equal length, as `(begin, end)` in characters.

    Each cut is at a boundary at or before the equal length: between paragraphs, else lines, sentences, words.
    """
    sections = []
    begin, token = 0, 0
    while (left := len(starts) - token) > room:
        even = math.ceil(left / math.ceil(left / room))
        end = _boundary(text, starts[token + even // 2], starts[token + even])
        end = max(end, begin + 1)  # several tokens may share the position of one character
        sections.append((begin, end))
        begin, token = end, bisect_left(starts, end)
    if begin < len(text):
        sections.append((begin, len(text)))
    return sections


def cut_length(text: str, starts: Sequence[int], most: int) -> int:
    """Return the length, in characters, of a prefix of at most `most` tokens that ends at a boundary of the text."""
    return len(text) if len(starts) <= most else max(1, _boundary(text, starts[most // 2], starts[most]))


def _boundary(text: str, low: int, high: int) -> int:
    for boundary in _BOUNDARIES:
        if (place := text.rfind(boundary, low, high)) >= 0:
            return place + len(boundary)
    return high


def spread(count: int, most: int) -> list[int]:
    """Choose at most `most` of `count` positions, evenly spaced: the middles of equal parts."""
    if count <= most:
        return list(range(count))
    return [int((number + 0.5) * count / most) for number in range(most)]


def material_room(prompts: PromptSet, settings: QASettings, counter: TokenCounter) -> int:
    """Return how many tokens of material fit into every prompt, next to its own words and the reply.

    Raises:
        ConfigError: too few to ask about, or too few for the notes on two sections.
    """
    replies = {prompts.notes: settings.notes_tokens, prompts.condense: settings.notes_tokens}
    replies |= dict.fromkeys(prompts.questions, settings.reply_tokens)
    if settings.judge:  # it reads a whole reply of pairs and writes its verdicts
        replies[prompts.judge] = 2 * settings.reply_tokens
    filled = {"material": "", "count": 99, "what": _LONGEST_WHAT, "part": _LONGEST_WHAT, "pairs": ""}
    taken = max(counter.count(template.fill(**filled)) + tokens for template, tokens in replies.items())
    room = settings.window - CHAT_TOKENS - taken
    needed = max(_SMALLEST_ROOM, 2 * (settings.notes_tokens + HEADING_TOKENS))
    if room < needed:
        raise ConfigError(
            f"--window {settings.window} must leave at least {needed} tokens for the text, and leaves {max(0, room)}: "
            f"prompts and replies may take {taken + CHAT_TOKENS}; lower --reply-tokens or --notes-tokens, or "
            "choose a model with a larger window"
        )
    return room
