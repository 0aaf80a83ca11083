"""Replies are read whatever a model writes around them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlora.corpus.qa.replies import (
    Pair,
    is_refusal,
    read_pairs,
    read_verdicts,
    says_nothing,
    speaks_of_a_part,
    without_thoughts,
)

PAIR = {"question": "Who?", "answer": "He.", "quotes": ["it is he"]}
READ = Pair("Who?", "He.", ("it is he",))


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps([PAIR]),
        json.dumps({"pairs": [PAIR]}),
        json.dumps(PAIR),
        f"Sure {{here}} you are:\n```json\n[{json.dumps(PAIR)}]\n```\nAnything else?",
        f'<think>maybe {{"question": "no", "answer": "no"}}</think>{json.dumps([PAIR])}',
        f'Maybe {{"question": "no", "answer": "no"}}\n</think>\n\n{json.dumps([PAIR])}',  # the template opened it
        f'[{json.dumps(PAIR)}, {{"question": "Cut", "answer": "by the en',
        '[{"question": " Who? ", "answer": "He.\n", "quotes": "it is he"}]',
        json.dumps([PAIR, {"question": "No answer?"}, {"question": "", "answer": "x"}, {"question": 1, "answer": 2}]),
        json.dumps([{**PAIR, "quotes": ["it is he", " ", 5, None]}]),
        json.dumps([PAIR]).replace("]}]", "],}],"),  # commas before the ends
        str([PAIR]),  # Python's quotes
        "[{'question': 'Who?', 'answer': 'He.',\n 'quotes': ['it is\n he'],}]",
        json.dumps([{name.capitalize(): value for name, value in PAIR.items()}]),
    ],
)
def test_pairs_are_found(reply: str) -> None:
    assert read_pairs(reply) == [READ]


@pytest.mark.parametrize("reply", ["", "no", "{", "[{}]", "<think>so " + json.dumps(PAIR), "{" * 5000, "[1, 2]"])
def test_where_there_is_none(reply: str) -> None:
    assert read_pairs(reply) == []


@given(st.text(max_size=60))
def test_no_reply_is_a_mistake(reply: str) -> None:
    read_pairs(reply)
    read_verdicts(reply)


@given(st.text(min_size=1), st.text(min_size=1))
def test_pairs_come_back(question: str, answer: str) -> None:
    found = read_pairs("x" + json.dumps([{"question": question, "answer": answer}]))
    expected = [(question.strip(), answer.strip())] if question.strip() and answer.strip() else []
    assert [(pair.question, pair.answer) for pair in found] == expected


def test_half_a_character_is_replaced() -> None:
    assert read_pairs('{"question": "a\\ud800", "answer": "b"}')[0].question == "a?"


def test_verdicts() -> None:
    verdicts = [
        {"number": 1, "verdict": "SUPPORTED", "reason": "in line 2"},
        {"number": "2", "verdict": "Unsupported "},
        {"number": None, "verdict": "supported"},
        {"verdict": "supported"},
        {"number": 4, "verdict": True},
    ]
    reply = f"Here: {json.dumps(verdicts)}"
    found = {number: (one.verdict, one.reason) for number, one in read_verdicts(reply).items()}
    assert found == {1: ("supported", "in line 2"), 2: ("unsupported", "")}


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't.",
        "I am unable to answer this.",
        "Unfortunately, I cannot tell.",
        "As an AI language model, I have no view.",
        "Sorry!",
        "Sorry, but I cannot.",
    ],
)
def test_refusals(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize("answer", ["The text does not mention his age.", "His age is not stated in the book."])
def test_answers_that_the_text_holds_none(answer: str) -> None:
    assert says_nothing(answer) and not is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "He says that he is sorry and cannot stay.",
        "Alice could not open the door, because the key was too large.",
        "The captain does not mention the storm to his men.",
        "Not even the author of the letter knew it.",
        "Sorry is what the Mole feels when he thinks of his home.",
    ],
)
def test_answers_that_are_none(answer: str) -> None:
    assert not is_refusal(answer) and not says_nothing(answer)


@pytest.mark.parametrize(
    ("question", "is_of_a_part"),
    [
        ("What happens in this excerpt?", True),
        ("What do the notes above say about Anna?", False),
        ("According to the notes, who is Anna?", True),
        ("How does the given passage end?", True),
        ("Who wrote the notes that Anna found?", False),
        ("Which passage did the ship take?", False),
    ],
)
def test_questions_about_a_part(question: str, is_of_a_part: bool) -> None:
    assert speaks_of_a_part(question) is is_of_a_part


def test_thoughts_are_left_out() -> None:
    assert without_thoughts("<thinking>\nhm\n</thinking>\n Notes. ") == "Notes."
    assert without_thoughts("<think>hm") == ""
    assert without_thoughts("hm\n</think>\n\nA tag like </think> ends it.") == "A tag like </think> ends it."
