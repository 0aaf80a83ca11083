"""Find near-duplicate texts, and texts that contain parts of others, by the runs of words they share.

`NearDuplicates` estimates with MinHash the share of five-word runs that two texts have in common. `RunIndex` measures
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
RUN_WORDS = 13  # words in a run of `RunIndex`, as in GPT-3's contamination check (arXiv 2005.14165, appendix C)

# About one run in eight is kept, chosen by its hash so that all texts keep the same runs; short texts keep all runs.
_SAMPLE = 8
_FEWEST = 8
_WORD = re.compile(r"\w+")


def signature(text: str, *, run_words: int = _SHINGLE_WORDS) -> MinHash:
    """Return the MinHash of a text's runs of words; a text shorter than a run counts as one run."""
    sketch = MinHash(num_perm=_NUM_PERMUTATIONS, hashfunc=partial(_hash, num_bytes=4))
    sketch.update_batch(sorted(_runs(text, run_words)))
    return sketch


def _runs(text: str, run_words: int) -> set[bytes]:
    words = [word.encode() for word in _WORD.findall(text.casefold())]
    return {b" ".join(words[index : index + run_words]) for index in range(max(1, len(words) - run_words + 1))}


def _hash(run: bytes, *, num_bytes: int) -> int:
    return int.from_bytes(hashlib.blake2b(run, digest_size=num_bytes).digest(), "little")


class NearDuplicates:
    """An index of texts by key, which finds one that a new text nearly repeats.

    Two texts are near duplicates if the Jaccard index of their five-word runs is at least `threshold`. The index is
    estimated from 128 hashes, with a standard error of at most 0.045.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        self._threshold = threshold
        # False positives are harmless, since every candidate is checked; false negatives must be rare.
        self._index = MinHashLSH(threshold=threshold, num_perm=_NUM_PERMUTATIONS, weights=(0.05, 0.95))
        self._signatures: dict[Hashable, MinHash] = {}

    def find(self, sketch: MinHash) -> tuple[Hashable, float] | None:
        """Return the key of the most similar text and the Jaccard index; None if none reaches the threshold."""
        found = [(key, float(sketch.jaccard(self._signatures[key]))) for key in self._index.query(sketch)]
        found = [(key, share) for key, share in found if share >= self._threshold]
        return max(found, key=lambda pair: pair[1], default=None)

    def add(self, key: Hashable, sketch: MinHash) -> None:
        """Add a text by its MinHash."""
        self._signatures[key] = sketch
        self._index.insert(key, sketch)


class RunIndex:
    """An index of texts by their runs of words, to find what share of a new text occurs in one of them."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._places: dict[int, array[int]] = defaultdict(lambda: array("L"))

    def add(self, name: str, text: str) -> None:
        """Add a text."""
        for run in _sampled_runs(text):
            self._places[run].append(len(self._names))
        self._names.append(name)

    def find(self, text: str) -> tuple[str, float] | None:
        """Return the text that contains the most runs of a new one, and the share of those runs; None if there is none.

        The share measures containment: for an excerpt of a known book, of about a hundred words or more, it is 1.
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
