"""Questions that ask the same.

Only questions about one document are compared: the same question about two books is two records. They are few, so the
similarity is computed and not estimated by hashing.
"""

from longlora.corpus.qa.grounding import normalise

_STOP = frozenset(
    "a an and are as at be by did do does for from had has have he her his in is it its of on or she that the their "
    "them they this to was were will with".split()  # not who, when, why: they make another question
)


class Asked:
    """The questions of one document so far."""

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity
        self._seen: list[frozenset[str]] = []

    def is_new(self, question: str) -> bool:
        """Remember a question and say whether none before shares so many words with it.

        The share is Jaccard's, words of both over words of either, without those that carry the grammar.
        """
        words = frozenset("".join(c if c.isalnum() else " " for c in normalise(question)).split())
        words = (words - _STOP) or words
        if any(len(words & other) >= self._similarity * len(words | other) for other in self._seen):
            return False
        self._seen.append(words)
        return True
