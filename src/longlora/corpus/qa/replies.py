"""What a model wrote, read: the pairs of a reply, the verdicts of a judge, refusals."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Pair:
    """A question, its answer, and the passages that shall prove it."""

    question: str
    answer: str
    quotes: tuple[str, ...] = ()


def read_pairs(reply: str) -> list[Pair]:
    """Find every pair in a reply, whatever stands around them; one that the end of the reply cut off is left out."""
    pairs = []
    for value in _objects(reply):
        question, answer = value.get("question"), value.get("answer")
        if isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip():
            quotes = value.get("quotes", value.get("quote", []))
            texts = [quotes] if isinstance(quotes, str) else quotes if isinstance(quotes, list) else []
            kept = tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
            pairs.append(Pair(_whole(question), _whole(answer), tuple(map(_whole, kept))))
    return pairs


def read_verdicts(reply: str) -> dict[int, tuple[str, str]]:
    """Find a judge's verdicts, as number of the pair → verdict in small letters and reason."""
    verdicts = {}
    for value in _objects(reply):
        verdict = value.get("verdict")
        try:
            number = int(value.get("number", ""))
        except (TypeError, ValueError):
            continue
        if isinstance(verdict, str):
            verdicts[number] = _whole(verdict).strip().lower(), _whole(str(value.get("reason", "")))
    return verdicts


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
        for item in value.values():
            yield from _within(item)
    elif isinstance(value, list):
        for item in value:
            yield from _within(item)


def _whole(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON may carry and no file and no tokenizer takes."""
    return text.strip().encode("utf-8", "replace").decode("utf-8")
