"""Answers are judged as text."""

import pytest

from longlora.evaluation.reader import share_found


@pytest.mark.parametrize(
    ("answer", "expected", "share"),
    [
        (" 12345.", ["12345"], 1),
        ("12345 is the pass key", ["12345"], 1),
        ("It is 12,345.", ["12345"], 1),
        ("is\n 12345\n", ["12345"], 1),
        ("123456", ["12345"], 0),
        ("012345", ["12345"], 0),
        ("12,345,678", ["12345"], 0),
        ("1234 5", ["12345"], 0),
        ("", ["12345"], 0),
        ("1, 2", ["1", "2"], 1),
        ("1,2 and 3", ["1", "2"], 1),
        ("2 and then 1", ["1", "2"], 1),
        ("only 2", ["1", "2"], 0.5),
        ("THE  History of\nTea.", ["the history of tea"], 1),
        ("the history of teams", ["the history of tea"], 0),
    ],
)
def test_whole_words_whatever_their_dress(answer: str, expected: list[str], share: float) -> None:
    assert share_found(answer, expected) == share


@pytest.mark.parametrize(
    ("answer", "share"), [("tea, then silk", 1), ("silk, then tea", 0), ("salt", 0), ("tea", 1), ("silky tea", 1)]
)
def test_a_list_of_all_that_was_seen_is_no_answer(answer: str, share: float) -> None:
    assert share_found(answer, ["tea"], ["silk", "salt"]) == share
