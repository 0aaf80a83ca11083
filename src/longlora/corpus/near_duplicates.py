"""Texts that are nearly the same, by MinHash: it estimates the share of runs of five words that two have in common."""

import hashlib
import re
from collections.abc import Hashable

from datasketch import MinHash, MinHashLSH

_SHINGLE_WORDS = 5
_NUM_PERMUTATIONS = 128
_WORD = re.compile(r"\w+")


def signature(text: str, *, run_words: int = _SHINGLE_WORDS) -> MinHash:
    """Sketch a text by its runs of words; one that is shorter is the one run that it has."""
    words = [word.encode() for word in _WORD.findall(text.casefold())]
    num_shingles = max(1, len(words) - run_words + 1)
    shingles = {b" ".join(words[index : index + run_words]) for index in range(num_shingles)}
    sketch = MinHash(num_perm=_NUM_PERMUTATIONS, hashfunc=_hash)
    sketch.update_batch(sorted(shingles))
    return sketch


def _hash(shingle: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(shingle, digest_size=4).digest(), "little")


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
