"""What a model wrote, read: the pairs of a reply, the verdicts of a judge, refusals.

`Pairs` and `Verdicts` are also the forms that a server is asked to keep replies to. They are read leniently all the
same, since a server may know no such forms: whatever stands around the objects is passed over.
"""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

Form = TypeVar("Form")

# strict=False: models put line breaks into strings.
_DECODER = json.JSONDecoder(strict=False)
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHT = re.compile(r"</think(?:ing)?>", re.IGNORECASE)

_REFUSAL = re.compile(
    r"^\W*(?:i(?:'m| am) (?:very |really |so )?(?:sorry|afraid|unable|not able)|sorry\b|"
    r"(?:unfortunately,? )?i (?:cannot|can't|can not|could not|couldn't|won't|will not|do not have|don't have)\b|"
    r"as an? (?:ai|artificial|language model|large language)|i apologi[sz]e)|"
    r"\b(?:as an ai (?:language )?model|i(?:'m| am) an ai\b)|"
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
    """Whether an answer declines to answer, or says that the text holds none."""
    return _REFUSAL.search(answer) is not None


def speaks_of_a_part(question: str) -> bool:
    """Whether a question points at an excerpt or at notes, which who reads the whole document does not have."""
    return _PART.search(question) is not None


def _read(reply: str, form: TypeAdapter[Form]) -> Iterator[Form]:
    for value in _objects(reply):
        try:
            yield form.validate_python(value)
        except ValidationError:
            continue


def _objects(reply: str) -> Iterator[dict[str, Any]]:
    """Decode every JSON object of a text that lies in no other, and the objects inside of it."""
    text = without_thoughts(reply)
    place = text.find("{")
    while place >= 0:
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
        else:
            yield from _within(value)
        place = text.find("{", place)


def _within(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _within(item)
