"""The text that facts are hidden in: a user's own, or sentences that are made up."""

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass

from longlora.errors import DataError
from longlora.evaluation.word_lists import ACTIONS, ADJECTIVES, NOUNS, PEOPLE, PLACES, TIMES


def sentence(rng: random.Random) -> str:
    """Make up a sentence in which nobody is named and no number occurs."""
    person, action, place, time = (rng.choice(words) for words in (PEOPLE, ACTIONS, PLACES, TIMES))
    text = f"{time}, {person} {action} {place}" if rng.random() < 0.3 else f"{person} {action} {place} {time}"
    return text[0].upper() + text[1:] + "."


def names(rng: random.Random, count: int) -> list[str]:
    """Draw different names such as `amber falcon`; there are 3,600."""
    places = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[place // len(NOUNS)]} {NOUNS[place % len(NOUNS)]}" for place in places]


def numbers(rng: random.Random, count: int, digits: int) -> list[str]:
    """Draw different numbers with so many digits, none of which is a leading zero."""
    return [str(number) for number in rng.sample(range(10 ** (digits - 1), 10**digits), count)]


_SENTENCE_ENDS = (".", "!", "?", '."', '!"', '?"', ".”", "!”", "?”")


class Words:
    """The words of one trial's filler, as many as are asked for; a user's text starts again at its end."""

    def __init__(self, words: list[str], rng: random.Random | None) -> None:
        self._words = words
        self._rng = rng

    def take(self, count: int) -> list[str]:
        """Return the first `count` words."""
        while len(self._words) < count:
            self._words.extend(sentence(self._rng).split() if self._rng else self._words)
        return self._words[:count]

    def sentence_start(self, count: int, depth: float) -> int:
        """Return the beginning of a sentence nearest to `depth` of the first `count` words, or else that very place."""
        wanted, words = round(depth * count), self.take(count)
        starts = [0, *(place for place in range(1, count) if words[place - 1].endswith(_SENTENCE_ENDS)), count]
        nearest = min(starts, key=lambda place: abs(place - wanted))
        # Texts without full stops would send every fact to one of the two ends.
        return nearest if len(starts) > 2 or wanted in (0, count) else wanted


@dataclass(frozen=True)
class Haystack:
    """Words to fill prompts with; without any, sentences are made up."""

    words: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Digest of the words, for the log's settings."""
        return hashlib.sha256(" ".join(self.words).encode()).hexdigest()[:16] if self.words else "generated sentences"

    def stream(self, seed: int) -> Words:
        """Start at a place that the seed draws."""
        rng = random.Random(seed)
        if not self.words:
            return Words([], rng)
        start = rng.randrange(len(self.words))
        while start and not self.words[start - 1].endswith(_SENTENCE_ENDS):
            start -= 1
        return Words([*self.words[start:], *self.words[:start]], None)


def read_haystack(texts: Iterable[str]) -> Haystack:
    """Make a haystack of texts, one after another.

    Raises:
        DataError: there is no word in them.
    """
    words = tuple(word for text in texts for word in text.split())
    if not words:
        raise DataError("the texts for the haystack hold no words: name others, or none to have sentences made up")
    return Haystack(words)
