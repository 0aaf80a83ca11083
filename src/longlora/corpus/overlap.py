"""How much of a text occurs in other texts, by runs of thirteen words."""

import hashlib
import re
from array import array
from collections import Counter, defaultdict

RUN_WORDS = 13
"""Words of a run: the length that GPT-3's check of its data used (arXiv 2005.14165, appendix C)."""

# Every eighth run is kept, chosen by its hash and so the same ones in every text; all of a text too short for that.
_SAMPLE = 8
_FEWEST = 8
_WORD = re.compile(r"\w+")


class RunIndex:
    """Remembers texts by their runs of words, to tell what share of a new one stands in one of them."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._places: dict[int, array[int]] = defaultdict(lambda: array("L"))

    def add(self, name: str, text: str) -> None:
        """Remember a text."""
        for run in _runs(text):
            self._places[run].append(len(self._names))
        self._names.append(name)

    def find(self, text: str) -> tuple[str, float] | None:
        """Return the text that shares most runs with a new one, and the share of the new one's runs; None without any.

        The share is of containment: an excerpt of a known book shares all of its runs, if it has a hundred words or so.
        """
        runs = _runs(text)
        counts: Counter[int] = Counter()
        for run in runs:
            if run in self._places:
                counts.update(set(self._places[run]))
        if not counts:
            return None
        place, count = counts.most_common(1)[0]
        return self._names[place], count / len(runs)


def _runs(text: str) -> set[int]:
    words = _WORD.findall(text.casefold())
    if len(words) < RUN_WORDS:
        return {_hash(" ".join(words))} if words else set()
    runs = {_hash(" ".join(words[index : index + RUN_WORDS])) for index in range(len(words) - RUN_WORDS + 1)}
    sample = {run for run in runs if run % _SAMPLE == 0}
    return sample if len(sample) >= _FEWEST else runs


def _hash(run: str) -> int:
    return int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest(), "little")
