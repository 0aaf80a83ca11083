"""The text that facts are hidden in: a user's own, or generated sentences."""

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass

from longlora.errors import DataError
from longlora.evaluation.word_lists import ACTIONS, ADJECTIVES, NOUNS, PEOPLE, PLACES, TIMES


def sentence(rng: random.Random) -> str:
    """Generate a sentence without names or numbers."""
    person, action, place, time = (rng.choice(words) for words in (PEOPLE, ACTIONS, PLACES, TIMES))
    text = f"{time}, {person} {action} {place}" if rng.random() < 0.3 else f"{person} {action} {place} {time}"
    return text[0].upper() + text[1:] + "."


def names(rng: random.Random, count: int) -> list[str]:
    """Draw distinct names such as `amber falcon`; there are 3,600."""
    places = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[place // len(NOUNS)]} {NOUNS[place % len(NOUNS)]}" for place in places]


def numbers(rng: random.Random, count: int, digits: int) -> list[str]:
    """Draw distinct numbers of `digits` digits, without leading zeros."""
    return [str(number) for number in rng.sample(range(10 ** (digits - 1), 10**digits), count)]


_SENTENCE_ENDS = (".", "!", "?", '."', '!"', '?"', ".”", "!”", "?”")


class Words:
    """The filler words of one trial, of any number; a user's text repeats when it runs out."""

    def __init__(self, words: list[str], rng: random.Random | None) -> None:
        self._words = words
        self._rng = rng

    def take(self, count: int) -> list[str]:
        """Return the first `count` words."""
        while len(self._words) < count:
            self._words.extend(sentence(self._rng).split() if self._rng else self._words)
        return self._words[:count]

    def sentence_start(self, count: int, depth: float) -> int:
        """Return the sentence start nearest to `depth` of the first `count` words, or that place if there is none."""
        wanted, words = round(depth * count), self.take(count)
        starts = [0, *(place for place in range(1, count) if words[place - 1].endswith(_SENTENCE_ENDS)), count]
        nearest = min(starts, key=lambda place: abs(place - wanted))
        # In a text without full stops, every fact would move to one of the two ends.
        return nearest if len(starts) > 2 or wanted in (0, count) else wanted


@dataclass(frozen=True)
class Haystack:
    """Filler words for prompts; if there are none, sentences are generated."""

    words: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """A digest of the words, recorded in the log's settings."""
        return hashlib.sha256(" ".join(self.words).encode()).hexdigest()[:16] if self.words else "generated sentences"

    def stream(self, seed: int) -> Words:
        """Start at a sentence chosen by the seed."""
        rng = random.Random(seed)
        if not self.words:
            return Words([], rng)
        start = rng.randrange(len(self.words))
        while start and not self.words[start - 1].endswith(_SENTENCE_ENDS):
            start -= 1
        return Words([*self.words[start:], *self.words[:start]], None)


def read_haystack(texts: Iterable[str]) -> Haystack:
    """Join texts into a haystack.

    Raises:
        DataError: they contain no words.
    """
    words = tuple(word for text in texts for word in text.split())
    if not words:
        raise DataError("the haystack texts contain no words: give others, or none to use generated sentences")
    return Haystack(words)
