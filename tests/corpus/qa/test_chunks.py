"""Sections cover the text without a gap, fit their room, and end where the text does."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus.qa.conftest import prose

from longlora.corpus.extract import detect_kind
from longlora.corpus.qa.chunks import (
    EstimatedTokens,
    ShelfText,
    TokenizerTokens,
    cut_length,
    cut_sections,
    material_room,
    read_in_sections,
    spread,
)
from longlora.corpus.qa.prompt_files import load_prompts
from longlora.corpus.qa.qa_settings import QASettings
from longlora.errors import ConfigError
from longlora.models.load import load_tokenizer
from longlora.tiny import tiny_model_directory


@given(st.text(alphabet="ab \n.é—", max_size=600), st.floats(0.3, 7), st.integers(1, 90))
def test_sections_cover_the_text(text: str, chars_per_token: float, room: int) -> None:
    counter = EstimatedTokens(chars_per_token)
    sections = cut_sections(text, counter.starts(text), room)
    assert "".join(text[begin:end] for begin, end in sections) == text
    assert all(begin < end for begin, end in sections)
    # A character may hold more tokens than the room.
    assert all(counter.count(text[begin:end]) <= max(room + 1, 1 / chars_per_token + 1) for begin, end in sections)


def test_sections_of_a_tokenizer(seed: int) -> None:
    text = prose(random.Random(seed), 700).replace("sea", "São é—")
    tokenizer = load_tokenizer(str(tiny_model_directory()))
    counter = TokenizerTokens(tokenizer, name="tiny")
    starts = counter.starts(text)
    assert len(starts) == counter.count(text) == len(tokenizer(text, add_special_tokens=False)["input_ids"])
    sections = cut_sections(text, starts, 300)
    assert "".join(text[begin:end] for begin, end in sections) == text
    counts = [counter.count(text[begin:end]) for begin, end in sections]
    assert max(counts) <= 302  # a token at a boundary may become two
    assert min(counts) > 75
    assert all(text[:end].endswith(("\n", ". ", " ")) for _, end in sections[:-1])


def test_the_best_boundary_is_taken() -> None:
    text = "aaa bbb. ccc ddd\neee fff\n\nggg. hhh iii jjj kkk lll mmm nnn"
    assert cut_sections(text, EstimatedTokens(1).starts(text), 30)[0] == (0, text.index("ggg"))
    text = text.replace("\n\n", "  ")
    assert cut_sections(text, EstimatedTokens(1).starts(text), 30)[0] == (0, text.index("eee"))
    text = text.replace("\n", " ")
    assert cut_sections(text, EstimatedTokens(1).starts(text), 15)[0] == (0, text.index("ccc"))
    assert cut_sections("a" * 10, range(10), 4) == [(0, 4), (4, 7), (7, 10)]


def test_a_document_is_cut_between_words() -> None:
    text = "one two three four"
    assert cut_length(text, EstimatedTokens(1).starts(text), 11) == len("one two ")
    assert cut_length(text, EstimatedTokens(1).starts(text), 18) == 18
    assert cut_length("aaaa", range(4), 1) == 1


@pytest.mark.parametrize(
    ("count", "most", "chosen"), [(3, 8, [0, 1, 2]), (8, 2, [2, 6]), (5, 0, []), (100, 3, [16, 50, 83]), (0, 3, [])]
)
def test_sections_to_ask_about_are_spread(count: int, most: int, chosen: list[int]) -> None:
    assert spread(count, most) == chosen


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match="the tokenizer of 'old' does not provide the positions of its tokens"):
        TokenizerTokens(Slow(), name="old")


PAPER = "Title\n\nABSTRACT\nWe show.\n\n1 Introduction\n" + "Text. " * 100 + "\n\n7. References\n[1] A.\n"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (PAPER, "paper"),
        ("\\begin{abstract} We \\end{abstract}" + "x " * 99 + "\\bibliography{all}", "paper"),
        (PAPER.replace("ABSTRACT", ""), "paper"),
        (PAPER.replace("ABSTRACT", "") + "Text. " * 40_000 + "\n\nReferences\n", "book"),  # with a bibliography
        (PAPER + "Text. " * 40_000 + "\n\nReferences\n", "paper"),  # a thesis
        (PAPER.replace("ABSTRACT", "").replace("References", "Epilogue"), "book"),
        (PAPER.replace("References", "Epilogue").replace("Text.", "Text [3]."), "paper"),
        ("In the abstract it was true.\n" + "x " * 99 + "He had no references.", "book"),
        ("", "book"),
    ],
)
def test_papers_are_told_from_books(text: str, kind: str) -> None:
    assert detect_kind(text) == kind


def test_repeated_texts_are_left_out() -> None:
    texts = [(name, ShelfText(text)) for name, text in (("a", PAPER), ("b", PAPER), ("c", "Text."))]
    settings = QASettings(model="m", window=9000, kind="book")
    documents, repeated = read_in_sections(texts, settings=settings, counter=EstimatedTokens(3.0), room={"book": 50})
    assert [(document.name, document.kind) for document in documents] == [("a", "book"), ("c", "book")]
    assert repeated == ["b"]
    first = documents[0]
    assert "".join(map(first.section, range(len(first.sections)))) == first.text == PAPER and len(first.sections) > 1


def test_every_prompt_fits_the_window_with_its_material() -> None:
    settings = QASettings(model="m", window=9000, judge=True, reply_tokens=1000, notes_tokens=500)
    counter = EstimatedTokens(3.0)
    prompts = load_prompts()["paper"]
    room = material_room(prompts, settings, counter)
    text = "x" * (3 * room)
    for template in prompts.questions:
        prompt = template.fill(material=text, what="the complete text of a paper", count=2)
        assert counter.count(prompt) + 1000 <= 9000
    judge = prompts.judge.fill(material=text, what="", pairs="y" * 3000)
    assert 9000 - 200 <= counter.count(judge) + 1000 <= 9000
