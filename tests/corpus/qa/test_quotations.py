"""Quotations are found as two prints of the same words are the same, and not otherwise."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus.qa.conftest import WORDS, prose

from longlora.corpus.qa.replies import QuestionDeduplicator
from longlora.corpus.quotations import Passages, normalise

TEXT = (
    "It was the best of times — it was the worst of times. “Who’s there?” cried the well-\nknown Mr. O'Brien; an "
    "exam-\nple of the ﬁnest   courage, 3–5 men strong... He left in haste.\n\nNobody followed him to the art house."
)


@pytest.mark.parametrize(
    "quote",
    [
        "the best of times -- it was the worst",
        "THE BEST OF\nTIMES—it was",
        "\"'Who's there?' cried the well-known Mr. O‘Brien\"",
        "worst of times. Who's there? cried the well-known",
        "an example of the finest courage, 3-5 men strong",
        "the best of times [...] the finest courage",
        "the best of times … cried the wellknown Mr. O'Brien",
        "...it was the worst of times.",
        "Nobody followed him to the art house",
    ],
)
def test_the_same_words(quote: str) -> None:
    assert Passages(TEXT).holds(quote)


@pytest.mark.parametrize(
    "quote",
    [
        "it was the best of time",  # half a word
        "the finest courage [...] the best of times",  # not in that order
        "it was the west of times",
        "obody followed him",
        "of times",  # too short to prove anything
        "... ",
        "",
        "He left, in haste",
        "cried the well-known Mr. OBrien",
    ],
)
def test_other_words(quote: str) -> None:
    assert not Passages(TEXT).holds(quote)


@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(0, 200))
def test_every_passage_of_a_text_is_found(seed: int, length: int, begin: int) -> None:
    rng = random.Random(seed)
    words = [rng.choice(WORDS) for _ in range(250)]
    quote = words[begin : begin + length]
    passages = Passages(" ".join(words))
    if len(quote) >= 3:
        assert passages.holds(" ".join(quote))


def test_similarity_is_the_share_of_words_in_order(seed: int) -> None:
    rng = random.Random(seed)
    text = prose(rng, 3000)
    words = text.split()
    passages = Passages(text)
    for changed in (0, 1, 3, 5):
        begin = rng.randrange(2900)
        quote = words[begin : begin + 20]
        for place in rng.sample(range(20), changed):
            quote[place] = f"another{place}"
        assert passages.similarity(" ".join(quote)) == pytest.approx((20 - changed) / 20)
    begin = rng.randrange(2900)
    left_out = words[begin : begin + 10] + words[begin + 12 : begin + 20]
    assert passages.similarity(" ".join(left_out)) == 1.0  # two words left out
    assert passages.similarity("some words that are not anywhere") < 0.5
    assert passages.similarity("two words") == 0.0
    shuffled = quote[:]
    rng.shuffle(shuffled)
    assert passages.similarity(" ".join(shuffled)) < 0.85  # 0.31 ± 0.05 in 20 seeds


def test_passages_of_one_book_are_not_in_another(shared_data: Path, seed: int) -> None:
    rng = random.Random(seed)
    texts = [path.read_text(encoding="utf-8") for path in sorted((shared_data / "pg19" / "validation").glob("*.txt"))]
    words = texts[0].split()
    own, other = (Passages(text) for text in texts[:2])
    for begin in rng.choices(range(len(words) - 12), k=100):
        passage = words[begin : begin + 12]
        assert own.holds(" ".join(passage))
        assert other.similarity(" ".join(passage)) < 0.85  # 0.29 ± 0.08 in 2,000 passages: 6.9 of them
        passage[rng.randrange(12)] = "zzz"
        assert not own.holds(" ".join(passage))
        assert own.similarity(" ".join(passage)) > 0.85


def test_normalising_twice_changes_nothing() -> None:
    assert normalise(normalise(TEXT)) == normalise(TEXT)


@pytest.mark.parametrize(
    ("question", "is_new"),
    [
        ("Why does Captain Ahab hunt the white whale?", False),
        ("why does captain Ahab hunt the white whale", False),
        ("Why did Captain Ahab hunt that one white whale?", False),
        ("When does Captain Ahab see the white whale?", True),
        ("Where does Ishmael meet Queequeg?", True),
        ("Warum jagt Ahab den Wal?", True),
    ],
)
def test_questions_that_ask_the_same(question: str, is_new: bool) -> None:
    asked = QuestionDeduplicator(0.7)
    assert asked.is_new("Why does Captain Ahab hunt the white whale?")
    assert asked.is_new(question) is is_new


def test_the_question_word_makes_another_question() -> None:
    asked = QuestionDeduplicator(0.7)
    assert asked.is_new("Who killed him?")
    assert asked.is_new("Why was he killed?")
    assert not asked.is_new("Who killed him?!")
