"""Whether a generated text holds the answer."""

import re
from collections.abc import Sequence

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def share_found(answer: str, expected: Sequence[str], distractors: Sequence[str] = ()) -> float:
    """Return the share of the expected words that the answer holds, 0 as soon as a distractor comes before them.

    Words are whole: 123 is not found in 1234. Case, runs of white space and thousands separators do not matter. With a
    distractor in front of the first expected word the answer is wrong, because a model that lists all that it has seen
    would hold any answer.
    """
    text = _normal(answer)
    places = [_place(text, word) for word in expected]
    found = [place for place in places if place is not None]
    wrong = [place for word in distractors if (place := _place(text, word)) is not None]
    if not found or (wrong and min(wrong) < min(found)):
        return 0.0
    return len(found) / len(expected)


def _normal(text: str) -> str:
    return _THOUSANDS.sub("", " ".join(text.split())).casefold()


def _place(text: str, word: str) -> int | None:
    match = re.search(rf"(?<!\w){re.escape(_normal(word))}(?!\w)", text)
    return match.start() if match else None
