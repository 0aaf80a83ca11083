"""Texts that are nearly the same, and texts that hold parts of one another, by the runs of words in common.

`NearDuplicates` estimates by MinHash the share of runs of five words that two texts have in common. `RunIndex` counts
how much of a text occurs in other texts, by runs of thirteen words.
"""

import hashlib
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Hashable
from functools import partial

from datasketch import MinHash, MinHashLSH

_SHINGLE_WORDS = 5
_NUM_PERMUTATIONS = 128
RUN_WORDS = 13  # words of a run of `RunIndex`: the length of GPT-3's check of its data (arXiv 2005.14165, appendix C)

# Every eighth run is kept, chosen by its hash and so the same ones in every text; all of a text too short for that.
_SAMPLE = 8
_FEWEST = 8
_WORD = re.compile(r"\w+")


def signature(text: str, *, run_words: int = _SHINGLE_WORDS) -> MinHash:
    """Sketch a text by its runs of words; one that is shorter is the one run that it has."""
    sketch = MinHash(num_perm=_NUM_PERMUTATIONS, hashfunc=partial(_hash, num_bytes=4))
    sketch.update_batch(sorted(_runs(text, run_words)))
    return sketch


def _runs(text: str, run_words: int) -> set[bytes]:
    words = [word.encode() for word in _WORD.findall(text.casefold())]
    return {b" ".join(words[index : index + run_words]) for index in range(max(1, len(words) - run_words + 1))}


def _hash(run: bytes, *, num_bytes: int) -> int:
    return int.from_bytes(hashlib.blake2b(run, digest_size=num_bytes).digest(), "little")


class NearDuplicates:
    """Remembers texts by a key, and finds one that a new text nearly repeats.

    `threshold` is the share of common runs of five words (Jaccard's index) from which two texts are nearly the same. It
    is estimated from 128 hashes, with a standard error of at most 0.045.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        self._threshold = threshold
        # The index may propose too many, since every proposal is checked, but hardly miss one.
        self._index = MinHashLSH(threshold=threshold, num_perm=_NUM_PERMUTATIONS, weights=(0.05, 0.95))
        self._signatures: dict[Hashable, MinHash] = {}

    def find(self, sketch: MinHash) -> tuple[Hashable, float] | None:
        """Return the key of the text most like a new one, and how alike they are; None if none is alike enough."""
        found = [(key, float(sketch.jaccard(self._signatures[key]))) for key in self._index.query(sketch)]
        found = [(key, share) for key, share in found if share >= self._threshold]
        return max(found, key=lambda pair: pair[1], default=None)

    def add(self, key: Hashable, sketch: MinHash) -> None:
        """Remember a text."""
        self._signatures[key] = sketch
        self._index.insert(key, sketch)


class RunIndex:
    """Remembers texts by their runs of words, to tell what share of a new one stands in one of them."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._places: dict[int, array[int]] = defaultdict(lambda: array("L"))

    def add(self, name: str, text: str) -> None:
        """Remember a text."""
        for run in _sampled_runs(text):
            self._places[run].append(len(self._names))
        self._names.append(name)

    def find(self, text: str) -> tuple[str, float] | None:
        """Return the text that shares most runs with a new one, and the share of the new one's runs; None without any.

        The share is of containment: an excerpt of a known book shares all of its runs, if it has a hundred words or so.
        """
        runs = _sampled_runs(text)
        counts: Counter[int] = Counter()
        for run in runs:
            if run in self._places:
                counts.update(set(self._places[run]))
        if not counts:
            return None
        place, count = counts.most_common(1)[0]
        return self._names[place], count / len(runs)


def _sampled_runs(text: str) -> set[int]:
    runs = {_hash(run, num_bytes=8) for run in _runs(text, RUN_WORDS) if run}
    sample = {run for run in runs if run % _SAMPLE == 0}
    return sample if len(sample) >= _FEWEST else runs
