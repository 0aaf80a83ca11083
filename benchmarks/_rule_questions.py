"""Generate questions about a text by rules, with answers that are verbatim in it.

A text is cut into excerpts, and each form of question is asked wherever its pattern matches. The words that a question
quotes occur only once in the excerpt, so there is one answer, which repeats and continues them; `quote` is the passage.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_WORDS = r"[A-Za-z][\w' -]*"  # up to a mark or the end of a line
_MARK = r"[.,;:!?][\"']?"
_MORE_WORDS = r"[\w' -]*"
_NAME = r"(?:[Tt]he |(?:Mr|Mrs|Miss|Dr|Sir|Lord|Lady|Captain)\.? )?[A-Z][a-z]+(?: [A-Z][a-z]+)?"
_TITLES = frozenset("Mr Mrs Miss Dr Sir Lord Lady Captain".split())
_SAYING = "said|cried|asked|answered|replied|whispered|murmured|exclaimed|shouted"
_SENTENCE_END = re.compile(r"(?<=[.!?][\"'])\s|(?<=[.!?])\s(?=[A-Z\"\\])")
_MOST_COUNTED = 5


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A question about an excerpt, the answer, and the passage that contains it."""

    form: str
    question: str
    answer: str
    quote: str


def excerpts(text: str, num_characters: int) -> Iterator[str]:
    """Cut a text into pieces of about `num_characters` characters, at ends of paragraphs or sentences."""
    piece, size = list[str](), 0
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _SENTENCE_END.split(paragraph.strip()):
            if size and size + len(sentence) > num_characters:
                yield "".join(piece).strip()
                piece, size = [], 0
            piece.append(f"{sentence} ")
            size += len(sentence) + 1
        piece.append("\n")
    if size:
        yield "".join(piece).strip()


def names_of(text: str) -> frozenset[str]:
    """Return the words that are capitalized within sentences, and never written otherwise."""
    within = Counter(re.findall(r"(?<=[a-z,] )[A-Z][a-z]+\b", text))
    small = set(re.findall(r"\b[a-z]+\b", text))
    return frozenset(word for word, count in within.items() if count > 1 and word.lower() not in small) - _TITLES


def _quotations(text: str, names: frozenset[str], rng: random.Random) -> Iterator[Pair]:
    """Ask how a sentence continues after its first words; the answer ends at the next punctuation mark."""
    for found in re.finditer(rf"(?<![\w'])({_WORDS})({_MARK})", text):
        words = found[1].split()
        given = rng.randint(4, 6)
        start = " ".join(words[:given])
        if given + 2 <= len(words) <= given + 6 and text.count(start) == 1:
            passage = " ".join(words) + found[2]
            yield Pair(form="quotation", question=f'How does "{start}" go on?', answer=passage, quote=passage)


def _speakers(text: str, names: frozenset[str], rng: random.Random) -> Iterator[Pair]:
    """Ask who says something."""
    for found in re.finditer(rf"([^\"\n]{{12,80}}?[,!?])\" ((?:{_SAYING}) ({_NAME}))([.,;:])", text):
        words = " ".join(found[1].split()[-8:])
        if text.count(words) == 1 and found[3].split()[-1] in names:
            passage = f'{words}" {found[2]}{found[4]}'
            yield Pair(form="speaker", question=f'Who says "{words}"?', answer=passage, quote=passage)


def _said_of(text: str, names: frozenset[str], rng: random.Random) -> Iterator[Pair]:
    """Ask what is said about a name that occurs once in the excerpt."""
    for found in re.finditer(rf"(?<![\w'.])({_NAME}) ([a-z]{_MORE_WORDS})({_MARK})", text):
        last = found[1].split()[-1]
        rest = found[2].split()
        if last in names and 2 <= len(rest) <= 8 and len(re.findall(rf"\b{last}\b", text)) == 1:
            passage = f"{found[1]} {' '.join(rest)}{found[3]}"
            yield Pair(form="name", question=f"What is said of {found[1]}?", answer=passage, quote=passage)


def _references(text: str, names: frozenset[str], rng: random.Random) -> Iterator[Pair]:
    """Ask for the label that a paper gives to a section, or refers to after certain words."""
    for found in re.finditer(r"section\{([^{}$\n]{4,60})\}\s*\\label\{([^{}\s]+)\}", text):
        if text.count(found[1]) == 1:
            passage = f"{found[1]}}} \\label{{{found[2]}}}"
            yield Pair(form="reference", question=f'Which label has "{found[1]}"?', answer=passage, quote=found[0])
    for found in re.finditer(r"((?:[\w']+[ ,]+){2,5}[A-Z][a-z]+)[ ~]\\(c?ref)\{([^{}\s]+)\}", text):
        if text.count(found[1]) == 1:
            passage = f"{found[1]} \\{found[2]}{{{found[3]}}}"
            yield Pair(form="reference", question=f'Which label has "{found[1]}"?', answer=passage, quote=found[0])


def _orders(text: str, names: frozenset[str], rng: random.Random) -> Iterator[Pair]:
    """Ask what follows the end of a sentence; the answer ends at the next sentence's first punctuation mark."""
    for found in re.finditer(rf"((?:[\w']+[ ,]+){{4}}[\w']+[.!?]) +([A-Z]{_MORE_WORDS})({_MARK})", text):
        rest = found[2].split()
        if 2 <= len(rest) <= 8 and text.count(found[1]) == 1:
            passage = f"{found[1]} {' '.join(rest)}{found[3]}"
            yield Pair(form="order", question=f'What comes after "{found[1]}"?', answer=passage, quote=passage)


def _counts(text: str, names: frozenset[str], rng: random.Random) -> Iterator[Pair]:
    """Ask how often a name occurs, with all counts as equally frequent as possible."""
    found = Counter(word for word in re.findall(r"\b[A-Z][a-z]+\b", text) if word in names)
    for count in range(1, _MOST_COUNTED + 1):
        same = sorted(word for word, times in found.items() if times == count)
        if same:
            word = rng.choice(same)
            around = re.search(rf"(?:\S+ ){{0,3}}\b{word}\b(?: \S+){{0,3}}", text)
            if around:
                question = f'How often does "{word}" occur?'
                yield Pair(form="count", question=question, answer=f"{word}: {count}", quote=around[0])


FORMS: dict[str, Callable[[str, frozenset[str], random.Random], Iterator[Pair]]] = {
    "quotation": _quotations,
    "order": _orders,
    "name": _said_of,
    "speaker": _speakers,
    "reference": _references,
    "count": _counts,
}
