"""Parse a model's replies: read pairs and verdicts, detect refusals, and find quotations in the document.

`Pairs` and `Verdicts` are also the schemas that a server is asked to enforce. Since it may not support schemas, replies
are parsed leniently: any text around the objects is ignored.

Quotations are matched regardless of what typesetting and models change: case, white space, quotation marks, dashes,
ligatures, hyphens within words. A quotation with an ellipsis is matched piece by piece, in order.
"""

import ast
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import SequenceMatcher
from functools import cached_property
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

Form = TypeVar("Form")

# strict=False: models put line breaks into strings.
_DECODER = json.JSONDecoder(strict=False)
_FLAT_OBJECT = re.compile(r"\{[^{}]*\}")
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHT = re.compile(r"</think(?:ing)?>", re.IGNORECASE)

_REFUSAL = re.compile(
    r"^\W*(?:i(?:'m| am) (?:very |really |so )?(?:sorry|afraid|unable|not able)|sorry(?:[!.,]|\s*$| but\b| i\b)|"
    r"(?:unfortunately,? )?i (?:cannot|can't|can not|could not|couldn't|won't|will not|do not have|don't have)\b|"
    r"as an? (?:ai|artificial|language model|large language)|i apologi[sz]e)|"
    r"\b(?:as an ai (?:language )?model|i(?:'m| am) an ai\b)",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"\b(?:the|this) (?:given |provided )?(?:text|book|story|novel|paper|article|document|author|passage)s? "
    r"(?:itself )?(?:does|do|did) not (?:mention|say|state|specify|provide|contain|discuss|give)|"
    r"\b(?:is|are|was|were) not (?:mentioned|stated|specified|provided|given|discussed) "
    r"(?:in|by) (?:the|this) (?:text|book|story|novel|paper|article|document|passage)",
    re.IGNORECASE,
)
_PART = re.compile(
    r"\b(?:this|these|the (?:given|provided|above|following|present)) (?:excerpt|section|notes|passage|snippet)s?\b|"
    r"\baccording to (?:the|this|these) (?:excerpt|section|notes|passage|snippet)s?\b",
    re.IGNORECASE,
)

SHORTEST_QUOTE = 3  # words; shorter quotations prove nothing, as they occur in any book

_SAME = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑", "-"),
        "\u00ad": None,  # soft hyphen
        "\u200b": None,  # zero-width space
    }
)
# "exam-⏎ple" is "example"; "well-⏎known" may have had its hyphen before the break, so no hyphens are kept.
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?:\s*\n\s*)?(?=[^\W\d_])")
_DASHES = re.compile(r"[-‒–—―−]+")
# Quotation marks within a passage get lost or changed on the way through JSON. Apostrophes in words stay.
_QUOTATION_MARKS = re.compile(r"""\"|(?<!\w)'|'(?!\w)""")
_SPACE = re.compile(r"\s+")
_ELLIPSIS = re.compile(r"\s*(?:\[\s*(?:\.\s*){3}\]|(?:\.\s*){3,}|…|\[…\])\s*")
_WORD = re.compile(r"\w+")
GRAMMAR = frozenset(
    "a an and are as at be by did do does for from had has have he her his in is it its of on or she that the their "
    "them they this to was were will with".split()  # not who, when, why: they make it another question
)
_OUTSIDE = " \t\n\"'.,;:!?()[]-"


def _whole(text: Any) -> Any:
    """Replace halves of surrogate pairs, which are valid JSON but which neither files nor tokenizers accept."""
    return text.strip().encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else text


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


_Text = Annotated[str, BeforeValidator(_whole)]
_Words = Annotated[_Text, AfterValidator(_not_empty)]  # unlike Field(min_length=1), not part of the schema


@dataclass(frozen=True)
class Pair:
    """A question, its answer, and the passages that shall prove it."""

    question: _Words
    answer: _Words
    quotes: Annotated[tuple[_Text, ...], BeforeValidator(_texts)] = Field(
        default_factory=tuple, validation_alias=AliasChoices("quotes", "quote")
    )


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a pair."""

    number: int
    verdict: Annotated[_Text, AfterValidator(str.lower)]
    reason: _Text = Field(default_factory=str)


class Pairs(BaseModel):
    """The form of a reply with questions."""

    pairs: list[Pair]


class Verdicts(BaseModel):
    """The form of a judge's reply."""

    verdicts: list[Verdict]


_PAIR, _VERDICT = TypeAdapter(Pair), TypeAdapter(Verdict)


def read_pairs(reply: str) -> list[Pair]:
    """Return all complete pairs in a reply, ignoring any text around them."""
    return list(_read(reply, _PAIR))


def read_verdicts(reply: str) -> dict[int, Verdict]:
    """Return a judge's verdicts, by the number of the pair."""
    return {verdict.number: verdict for verdict in _read(reply, _VERDICT)}


def without_thoughts(reply: str) -> str:
    """Remove a model's thoughts from its reply.

    If the chat template opens the thought in the prompt, like DeepSeek-R1's, the reply contains only the closing tag.
    """
    return _END_OF_THOUGHT.split(_THOUGHT.sub("", reply), maxsplit=1)[-1].strip()


def is_refusal(answer: str) -> bool:
    """Return whether an answer is a refusal to answer."""
    return _REFUSAL.search(answer) is not None


def says_nothing(answer: str) -> bool:
    """Return whether an answer says that the text gives none; for a paper's limitations, that may be the answer."""
    return _NO_ANSWER.search(answer) is not None


def speaks_of_a_part(question: str) -> bool:
    """Return whether a question refers to an excerpt or notes, which readers of the whole document do not have."""
    return _PART.search(question) is not None


def _read(reply: str, form: TypeAdapter[Form]) -> Iterator[Form]:
    for value in _objects(reply):
        try:
            yield form.validate_python({str(name).casefold(): item for name, item in value.items()})
        except ValidationError:
            continue


def _objects(reply: str) -> Iterator[dict[str, Any]]:
    """Decode all JSON objects of a text, including nested ones."""
    text = without_thoughts(reply)
    place = text.find("{")
    while place >= 0:
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            value, end = _python_object(text, place)
        yield from _within(value)
        place = text.find("{", end)


def _python_object(text: str, place: int) -> tuple[Any, int]:
    """Parse an object in Python's syntax (single quotes, trailing comma); return it and its end."""
    if (found := _FLAT_OBJECT.match(text, place)) is not None:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return ast.literal_eval(" ".join(found[0].split())), found.end()
    return None, place + 1


def _within(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _within(item)


def normalise(text: str) -> str:
    """Normalize a text, so that different typesetting of the same words compares equal."""
    text = unicodedata.normalize("NFKC", _HYPHEN.sub("", text.translate(_SAME))).translate(_SAME)
    text = _DASHES.sub(" ", _QUOTATION_MARKS.sub("", text.casefold()))
    return _SPACE.sub(" ", text).strip()


class Passages:
    """A document in which quotations can be found."""

    def __init__(self, text: str) -> None:
        self._text = normalise(text)

    @cached_property
    def _words(self) -> list[str]:
        return _WORD.findall(self._text)

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(self._words):
            places[word].append(place)
        return places

    def __len__(self) -> int:
        """Return the number of characters of the normalized text."""
        return len(self._text)

    def holds(self, quote: str) -> bool:
        """Return whether a quotation of at least three words occurs in the document."""
        return self.find(quote) >= 0

    def find(self, quote: str, start: int = 0) -> int:
        """Return the position of a quotation of at least three words in the normalized text; -1 if it is not found."""
        first = -1
        pieces = [normalise(piece).strip(_OUTSIDE) for piece in _ELLIPSIS.split(quote)]
        pieces = [piece for piece in pieces if piece]
        if len(_WORD.findall(" ".join(pieces))) < SHORTEST_QUOTE:
            return -1
        for piece in pieces:
            place = self._find(piece, start)
            if place < 0:
                return -1
            first, start = (place if first < 0 else first), place + len(piece)
        return first

    def _find(self, piece: str, start: int) -> int:
        """Find whole words only: "art" is not in "heart"."""
        while (place := self._text.find(piece, start)) >= 0:
            end = place + len(piece)
            opens = place == 0 or not (self._text[place - 1].isalnum() and piece[0].isalnum())
            closes = end == len(self._text) or not (self._text[end].isalnum() and piece[-1].isalnum())
            if opens and closes:
                return place
            start = place + 1
        return -1

    def similarity(self, quote: str) -> float:
        """Return the share of a quotation's words that occur in the same order in the best-matching window.

        Windows are chosen where the quotation's rarest words occur together, and compared by difflib's matching blocks;
        they are as long as the quotation, with a few more words on both sides.
        """
        words = _WORD.findall(normalise(quote))
        if len(words) < SHORTEST_QUOTE:
            return 0.0
        return max((_in_order(words, self._words[begin:end]) for begin, end in self._near(words)), default=0.0)

    def _near(self, words: Sequence[str]) -> list[tuple[int, int]]:
        """Return the windows in which the most words are at the same offset as in the quotation."""
        margin = max(2, len(words) // 4)
        votes: Counter[int] = Counter()
        known = sorted((word for word in set(words) if word in self._places), key=lambda word: len(self._places[word]))
        rarest = set(known[: max(4, len(known) // 2)])
        for offset, word in enumerate(words):
            if word in rarest:
                votes.update((place - offset) // margin for place in self._places[word])
        windows = [(bucket * margin) for bucket, _ in votes.most_common(8)]
        return [(max(0, begin - margin), begin + len(words) + 2 * margin) for begin in windows]


def _in_order(words: Sequence[str], window: Sequence[str]) -> float:
    blocks = SequenceMatcher(None, words, window, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(words)


class QuestionDeduplicator:
    """Detects repeated questions about one document.

    The same question about two books is not a repetition. A document has few questions, so similarity is computed
    exactly rather than estimated by hashing.
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._seen: list[frozenset[str]] = []

    def is_new(self, question: str) -> bool:
        """Add a question; return whether no earlier one is too similar to it.

        Similarity is the Jaccard index of their words, without function words.
        """
        words = frozenset("".join(c if c.isalnum() else " " for c in normalise(question)).split())
        words = (words - GRAMMAR) or words
        if any(len(words & other) >= self._similarity * len(words | other) for other in self._seen):
            return False
        self._seen.append(words)
        return True
