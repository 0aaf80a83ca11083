"""Generate articles of made-up words with a known text, to compare with what is read back from their PDFs."""

import difflib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

SMALL_WORDS = "the of and to in a is that it for was on are as with by at from or an be this which not".split()
SYLLABLES = "ba be bi bo ca ce co da de di do fa fi flo fo ga ge gi la le li lo ma me mi mo na ne no pa pe po ra re ri"
SYLLABLES = [*SYLLABLES.split(), *"ro sa se si so sta ta te ti to tra va ve vi vo ffi ffe fla".split()]


@dataclass
class Paragraph:
    """Sentences, and possibly a footnote to the last word of the first sentence."""

    sentences: list[str]
    note: str = ""

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@dataclass
class Section:
    """A heading and the paragraphs below it."""

    heading: str
    paragraphs: list[Paragraph]


@dataclass
class Article:
    """A text in reading order, with what may be printed elsewhere kept separately: notes, captions, references."""

    title: str
    abstract: Paragraph
    sections: list[Section]
    running_head: str = ""
    figure: str = ""
    table: str = ""
    table_rows: list[list[str]] = field(default_factory=list)
    references: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        """The words of title, abstract, headings and paragraphs, in reading order."""
        parts = [self.title, self.abstract.text]
        for section in self.sections:
            parts += [section.heading, *(paragraph.text for paragraph in section.paragraphs)]
        return words_of(" ".join(parts))

    @property
    def all_text(self) -> str:
        """All that is printed as text: title, abstract, sections, notes, captions and references."""
        parts = [self.title, self.abstract.text]
        for section in self.sections:
            parts += [section.heading, *(paragraph.text for paragraph in section.paragraphs)]
        captions = [f"Figure 1: {self.figure}", f"Table 1: {self.table}"]
        return "\n\n".join([*parts, *self.notes, *captions, "References", *self.references])

    @property
    def notes(self) -> list[str]:
        return [paragraph.note for section in self.sections for paragraph in section.paragraphs if paragraph.note]


def make_article(seed: int, *, num_sections: int = 5, paragraphs: int = 4, notes: bool = True) -> Article:
    """Generate an article; the same seed gives the same article."""
    choose = random.Random(seed)
    vocabulary = [
        "".join(choose.choice(SYLLABLES) for _ in range(choose.choice((1, 2, 2, 3, 3, 4)))) for _ in range(3000)
    ]

    def phrase(length: int) -> str:
        return " ".join(choose.choice(SMALL_WORDS if choose.random() < 0.4 else vocabulary) for _ in range(length))

    def paragraph(sentences: int) -> Paragraph:
        return Paragraph([phrase(choose.randint(6, 22)).capitalize() + "." for _ in range(sentences)])

    article = Article(
        title=" ".join(choose.choice(vocabulary).capitalize() for _ in range(9)),
        abstract=paragraph(5),
        sections=[
            Section(f"{number} {phrase(3).capitalize()}", [paragraph(choose.randint(2, 7)) for _ in range(paragraphs)])
            for number in range(1, num_sections + 1)
        ],
        running_head=phrase(5).title(),
        figure=phrase(14).capitalize() + ".",
        table=phrase(9).capitalize() + ".",
        table_rows=[[choose.choice(vocabulary), *(f"{choose.random():.3f}" for _ in range(3))] for _ in range(6)],
        references=[
            f"[{number}] {phrase(2).title()}. {phrase(8).capitalize()}. In {phrase(3)}, {choose.randint(1990, 2025)}."
            for number in range(1, 13)
        ],
    )
    if notes:
        for section in article.sections[::2]:
            section.paragraphs[1].note = phrase(12).capitalize() + "."
    return article


def words_of(text: str) -> list[str]:
    """Split a text into words, including punctuation."""
    return text.split()


def without_asides(text: str) -> str:
    """Remove the paragraphs in brackets: figures, tables, footnotes."""
    return "\n\n".join(
        part for part in text.split("\n\n") if not re.fullmatch(r"\[(Figure|Table|Footnote).*\]", part, re.S)
    )


def agreement(source: Sequence[str], read: Sequence[str]) -> float:
    """Return the share of words that match in order: 2 × matches / (words of both texts).

    The matches are difflib's blocks, in the same order on both sides; words out of order, missing or added lower it.
    """
    matcher = difflib.SequenceMatcher(None, list(source), list(read), autojunk=False)
    return matcher.ratio()


def first_differences(source: Sequence[str], read: Sequence[str], limit: int = 20) -> list[str]:
    """Return the first differences between two texts, for a person to read."""
    found = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, list(source), list(read), autojunk=False).get_opcodes():
        if tag != "equal":
            found.append(f"{tag:8} {' '.join(source[max(0, a - 3) : b])!r} | {' '.join(read[max(0, c - 3) : d])!r}")
    return found[:limit]
