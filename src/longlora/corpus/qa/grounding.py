"""Whether the passages that an answer quotes stand in the document, and whether a question was asked before.

Texts are compared without what typesetting and models change: case, white space, quotation marks, dashes, ligatures,
hyphens within words. A quotation with an ellipsis is looked for piece by piece, in order.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cached_property

SHORTEST_QUOTE = 3
"""Words of the shortest quotation that proves anything; less is found in every book."""

_SAME = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑", "-"),
        "\u00ad": None,  # soft hyphen
        "\u200b": None,  # space of no width
    }
)
# "exam-⏎ple" is "example"; whether "well-⏎known" had its hyphen before it was broken nobody knows, so none is kept.
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?:\s*\n\s*)?(?=[^\W\d_])")
_DASHES = re.compile(r"[-‒–—―−]+")
# A passage that itself holds quotation marks loses or changes them on its way through JSON. Apostrophes in words stay.
_QUOTATION_MARKS = re.compile(r"""\"|(?<!\w)'|'(?!\w)""")
_SPACE = re.compile(r"\s+")
_ELLIPSIS = re.compile(r"\s*(?:\[\s*(?:\.\s*){3}\]|(?:\.\s*){3,}|…|\[…\])\s*")
_WORD = re.compile(r"\w+")
_GRAMMAR = frozenset(
    "a an and are as at be by did do does for from had has have he her his in is it its of on or she that the their "
    "them they this to was were will with".split()  # not who, when, why: they make another question
)
_OUTSIDE = " \t\n\"'.,;:!?()[]-"


def normalise(text: str) -> str:
    """Write a text so that two prints of the same words become the same."""
    text = unicodedata.normalize("NFKC", _HYPHEN.sub("", text.translate(_SAME))).translate(_SAME)
    text = _DASHES.sub(" ", _QUOTATION_MARKS.sub("", text.casefold()))
    return _SPACE.sub(" ", text).strip()


class Passages:
    """A document to look quotations up in."""

    def __init__(self, text: str) -> None:
        self._text = normalise(text)

    @cached_property
    def _words(self) -> list[str]:
        return _WORD.findall(self._text)

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(self._words):
            places[word].append(place)
        return places

    def holds(self, quote: str) -> bool:
        """Whether a quotation of at least three words stands in the document."""
        start = 0
        pieces = [normalise(piece).strip(_OUTSIDE) for piece in _ELLIPSIS.split(quote)]
        pieces = [piece for piece in pieces if piece]
        if len(_WORD.findall(" ".join(pieces))) < SHORTEST_QUOTE:
            return False
        for piece in pieces:
            place = self._find(piece, start)
            if place < 0:
                return False
            start = place + len(piece)
        return True

    def _find(self, piece: str, start: int) -> int:
        """Find whole words: "art" is not in "heart"."""
        while (place := self._text.find(piece, start)) >= 0:
            end = place + len(piece)
            opens = place == 0 or not (self._text[place - 1].isalnum() and piece[0].isalnum())
            closes = end == len(self._text) or not (self._text[end].isalnum() and piece[-1].isalnum())
            if opens and closes:
                return place
            start = place + 1
        return -1

    def similarity(self, quote: str) -> float:
        """Share of a quotation's words that stand in the document in the same order, at the best place.

        Where the rarest words of the quotation stand together decides which places are compared: difflib's matching
        blocks between the quotation and as many words of the document, and a few more on both sides.
        """
        words = _WORD.findall(normalise(quote))
        if len(words) < SHORTEST_QUOTE:
            return 0.0
        return max((_in_order(words, self._words[begin:end]) for begin, end in self._near(words)), default=0.0)

    def _near(self, words: Sequence[str]) -> list[tuple[int, int]]:
        """Name the windows in which the most words of a quotation fall, each word where the quotation has it."""
        margin = max(2, len(words) // 4)
        votes: Counter[int] = Counter()
        known = sorted((word for word in set(words) if word in self._places), key=lambda word: len(self._places[word]))
        rarest = set(known[: max(4, len(known) // 2)])
        for offset, word in enumerate(words):
            if word in rarest:
                votes.update((place - offset) // margin for place in self._places[word])
        windows = [(bucket * margin) for bucket, _ in votes.most_common(8)]
        return [(max(0, begin - margin), begin + len(words) + 2 * margin) for begin in windows]


def _in_order(words: Sequence[str], window: Sequence[str]) -> float:
    blocks = SequenceMatcher(None, words, window, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks) / len(words)


class QuestionDeduplicator:
    """Knows the questions of one document so far.

    Only they are compared: the same question about two books is two records. They are few, so the similarity is
    computed and not estimated by hashing.
    """

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._seen: list[frozenset[str]] = []

    def is_new(self, question: str) -> bool:
        """Remember a question and say whether none before shares so many words with it.

        The share is Jaccard's, words of both over words of either, without those that carry the grammar.
        """
        words = frozenset("".join(c if c.isalnum() else " " for c in normalise(question)).split())
        words = (words - _GRAMMAR) or words
        if any(len(words & other) >= self._similarity * len(words | other) for other in self._seen):
            return False
        self._seen.append(words)
        return True
