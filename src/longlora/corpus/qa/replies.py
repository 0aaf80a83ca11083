"""What a model wrote: pairs and verdicts are read, refusals found, quotations looked up in the document.

`Pairs` and `Verdicts` are also the forms that a server is asked to keep replies to. They are read leniently all the
same, since a server may know no such forms: whatever stands around the objects is passed over.

Quotations are compared without what typesetting and models change: case, white space, quotation marks, dashes,
ligatures, hyphens within words. One with an ellipsis is looked for piece by piece, in order.
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

SHORTEST_QUOTE = 3  # words of the shortest quotation that proves anything; less is found in every book

_SAME = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑", "-"),
        "\u00ad": None,  # soft hyphen
        "\u200b": None,  # space of no width
    }
)
# "exam-⏎ple" is "example"; whether "well-⏎known" had its hyphen before it was broken nobody knows, so none is kept.
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?:\s*\n\s*)?(?=[^\W\d_])")
_DASHES = re.compile(r"[-‒–—―−]+")
# A passage that itself holds quotation marks loses or changes them on its way through JSON. Apostrophes in words stay.
_QUOTATION_MARKS = re.compile(r"""\"|(?<!\w)'|'(?!\w)""")
_SPACE = re.compile(r"\s+")
_ELLIPSIS = re.compile(r"\s*(?:\[\s*(?:\.\s*){3}\]|(?:\.\s*){3,}|…|\[…\])\s*")
_WORD = re.compile(r"\w+")
GRAMMAR = frozenset(
    "a an and are as at be by did do does for from had has have he her his in is it its of on or she that the their "
    "them they this to was were will with".split()  # not who, when, why: they make another question
)
_OUTSIDE = " \t\n\"'.,;:!?()[]-"


def _whole(text: Any) -> Any:
    """Replace halves of surrogate pairs, which JSON may carry and no file and no tokenizer takes."""
    return text.strip().encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else text


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list | tuple) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


_Text = Annotated[str, BeforeValidator(_whole)]
_Words = Annotated[_Text, AfterValidator(_not_empty)]  # unlike Field(min_length=1) no part of the schema


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
    """Find every pair in a reply, whatever stands around them; one that the end of the reply cut off is left out."""
    return list(_read(reply, _PAIR))


def read_verdicts(reply: str) -> dict[int, Verdict]:
    """Find a judge's verdicts, by the number of the pair."""
    return {verdict.number: verdict for verdict in _read(reply, _VERDICT)}


def without_thoughts(reply: str) -> str:
    """Leave out what a model thinks aloud before it writes.

    Where its chat template opens the thought in the prompt, as DeepSeek-R1's does, the reply holds only its end.
    """
    return _END_OF_THOUGHT.split(_THOUGHT.sub("", reply), maxsplit=1)[-1].strip()


def is_refusal(answer: str) -> bool:
    """Whether an answer declines to answer."""
    return _REFUSAL.search(answer) is not None


def says_nothing(answer: str) -> bool:
    """Whether an answer says that the text holds none; asked for a paper's limits, that may be the answer."""
    return _NO_ANSWER.search(answer) is not None


def speaks_of_a_part(question: str) -> bool:
    """Whether a question points at an excerpt or at notes, which who reads the whole document does not have."""
    return _PART.search(question) is not None


def _read(reply: str, form: TypeAdapter[Form]) -> Iterator[Form]:
    for value in _objects(reply):
        try:
            yield form.validate_python({str(name).casefold(): item for name, item in value.items()})
        except ValidationError:
            continue


def _objects(reply: str) -> Iterator[dict[str, Any]]:
    """Decode every JSON object of a text that lies in no other, and the objects inside of it."""
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
    """Read an object that is Python rather than JSON, with single quotes or a comma before its end, and its end."""
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
    """Write a text so that two prints of the same words become the same."""
    text = unicodedata.normalize("NFKC", _HYPHEN.sub("", text.translate(_SAME))).translate(_SAME)
    text = _DASHES.sub(" ", _QUOTATION_MARKS.sub("", text.casefold()))
    return _SPACE.sub(" ", text).strip()


class Passages:
    """A document to look quotations up in."""

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
        """Characters, as they are compared."""
        return len(self._text)

    def holds(self, quote: str) -> bool:
        """Whether a quotation of at least three words stands in the document."""
        return self.find(quote) >= 0

    def find(self, quote: str, start: int = 0) -> int:
        """The character at which a quotation of at least three words begins, from `start` on; -1 if it is not there."""
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
        """Find whole words: "art" is not in "heart"."""
        while (place := self._text.find(piece, start)) >= 0:
            end = place + len(piece)
            opens = place == 0 or not (self._text[place - 1].isalnum() and piece[0].isalnum())
            closes = end == len(self._text) or not (self._text[end].isalnum() and piece[-1].isalnum())
            if opens and closes:
                return place
            start = place + 1
        return -1

    def similarity(self, quote: str) -> float:
        """Share of a quotation's words that stand in the document in the same order, at the best place.

        Where the rarest words of the quotation stand together decides which places are compared: difflib's matching
        blocks between the quotation and as many words of the document, and a few more on both sides.
        """
        words = _WORD.findall(normalise(quote))
        if len(words) < SHORTEST_QUOTE:
            return 0.0
        return max((_in_order(words, self._words[begin:end]) for begin, end in self._near(words)), default=0.0)

    def _near(self, words: Sequence[str]) -> list[tuple[int, int]]:
        """Name the windows in which the most words of a quotation fall, each word where the quotation has it."""
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
    """Knows the questions of one document so far.

    Only they are compared: the same question about two books is two records. They are few, so the similarity is
    computed and not estimated by hashing.
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._seen: list[frozenset[str]] = []

    def is_new(self, question: str) -> bool:
        """Remember a question and say whether none before shares so many words with it.

        The share is Jaccard's, words of both over words of either, without those that carry the grammar.
        """
        words = frozenset("".join(c if c.isalnum() else " " for c in normalise(question)).split())
        words = (words - GRAMMAR) or words
        if any(len(words & other) >= self._similarity * len(words | other) for other in self._seen):
            return False
        self._seen.append(words)
        return True
