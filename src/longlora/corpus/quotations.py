"""Find quotations in a document.

They are matched regardless of what typesetting and models change: case, white space, quotation marks, dashes,
ligatures, hyphens within words. A quotation with an ellipsis is matched piece by piece, in order.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cached_property

SHORTEST_QUOTE = 3  # words; shorter quotations prove nothing, as they occur in any book

_SAME = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑", "-"),
        "\u00ad": None,  # soft hyphen
        "\u200b": None,  # zero-width space
    }
)
# "exam-⏎ple" is "example"; "well-⏎known" may have had its hyphen before the break, so no hyphens are kept.
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?:\s*\n\s*)?(?=[^\W\d_])")
_DASHES = re.compile(r"[-‒–—―−]+")
# Quotation marks within a passage get lost or changed on the way through JSON. Apostrophes in words stay.
_QUOTATION_MARKS = re.compile(r"""\"|(?<!\w)'|'(?!\w)""")
_SPACE = re.compile(r"\s+")
_ELLIPSIS = re.compile(r"\s*(?:\[\s*(?:\.\s*){3}\]|(?:\.\s*){3,}|…|\[…\])\s*")
_WORD = re.compile(r"\w+")
GRAMMAR = frozenset(
    "a an and are as at be by did do does for from had has have he her his in is it its of on or she that the their "
    "them they this to was were will with".split()  # not who, when, why: they make it another question
)
_OUTSIDE = " \t\n\"'.,;:!?()[]-"


def normalise(text: str) -> str:
    """Normalize a text, so that different typesetting of the same words compares equal."""
    text = unicodedata.normalize("NFKC", _HYPHEN.sub("", text.translate(_SAME))).translate(_SAME)
    text = _DASHES.sub(" ", _QUOTATION_MARKS.sub("", text.casefold()))
    return _SPACE.sub(" ", text).strip()


class Passages:
    """A document in which quotations can be found."""

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

    def __len__(self) -> int:
        """Return the number of characters of the normalized text."""
        return len(self._text)

    def holds(self, quote: str) -> bool:
        """Return whether a quotation of at least three words occurs in the document."""
        return self.find(quote) >= 0

    def find(self, quote: str, start: int = 0) -> int:
        """Return the position of a quotation of at least three words in the normalized text; -1 if it is not found."""
        first = -1
        pieces = [normalise(piece).strip(_OUTSIDE) for piece in _ELLIPSIS.split(quote)]
        pieces = [piece for piece in pieces if piece]
        if len(_WORD.findall(" ".join(pieces))) < SHORTEST_QUOTE:
            return -1
        for piece in pieces:
            place = self._find(piece, start)
            if place < 0:
                return -1
            first, start = (place if first < 0 else first), place + len(piece)
        return first

    def _find(self, piece: str, start: int) -> int:
        """Find whole words only: "art" is not in "heart"."""
        while (place := self._text.find(piece, start)) >= 0:
            end = place + len(piece)
            opens = place == 0 or not (self._text[place - 1].isalnum() and piece[0].isalnum())
            closes = end == len(self._text) or not (self._text[end].isalnum() and piece[-1].isalnum())
            if opens and closes:
                return place
            start = place + 1
        return -1

    def similarity(self, quote: str) -> float:
        """Return the share of a quotation's words that occur in the same order in the best-matching window.

        Windows are chosen where the quotation's rarest words occur together, and compared by difflib's matching blocks;
        they are as long as the quotation, with a few more words on both sides.
        """
        words = _WORD.findall(normalise(quote))
        if len(words) < SHORTEST_QUOTE:
            return 0.0
        return max((_in_order(words, self._words[begin:end]) for begin, end in self._near(words)), default=0.0)

    def _near(self, words: Sequence[str]) -> list[tuple[int, int]]:
        """Return the windows in which the most words are at the same offset as in the quotation."""
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
