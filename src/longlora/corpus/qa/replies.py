"""Parse a model's replies: read pairs and verdicts, detect refusals and repeated questions.

`Pairs` and `Verdicts` are also the schemas that a server is asked to enforce. Since it may not support schemas, replies
are parsed leniently: any text around the objects is ignored.
"""

import ast
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from longlora.corpus.quotations import GRAMMAR, normalise

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
