"""Lines for a terminal end between words, however the text is cut into pieces."""

import random

import pytest
from rich.cells import cell_len

from longlora.inference.terminal import Wrapping


def wrapped(text: str, columns: int, seed: int | None = None) -> str:
    written: list[str] = []
    wrapping = Wrapping(written.append, lambda: columns)
    draw, place = random.Random(seed), 0
    while place < len(text):
        size = len(text) if seed is None else draw.randint(1, 4)
        wrapping.feed(text[place : place + size])
        place += size
    wrapping.finish()
    return "".join(written)


def test_words_stay_whole_and_lines_that_fit_as_they_are() -> None:
    assert wrapped("one two three four", 9) == "one two\nthree\nfour"
    assert wrapped("if x:\n    return  1 \n", 20) == "if x:\n    return  1 \n"
    assert wrapped("    one two", 8) == "    one\ntwo"
    assert wrapped("a incomprehensible b", 8) == "a\nincomprehensible\nb"  # the terminal breaks what nothing can hold
    assert wrapped("a\tbc d", 10) == "a\tbc\nd"
    assert wrapped("日本の海は広い", 6) == "日本の\n海は広\nい"


@pytest.mark.parametrize("columns", [7, 20, 80])
def test_no_piece_changes_where_lines_end(columns: int, seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choice(["a", "bcd", " ", "  ", "\n", "efghijk", "海", "\t"]) for _ in range(400))
    whole = wrapped(text, columns)
    assert wrapped(text, columns, seed) == whole
    assert "".join(whole.split()) == "".join(text.split())
    for line in whole.split("\n"):
        assert cells(line.rstrip()) <= columns or len(line.split()) == 1


def cells(line: str) -> int:
    """Count the cells a line takes, a tab reaching to the next multiple of 8 of them."""
    taken = 0
    for character in line:
        taken += 8 - taken % 8 if character == "\t" else cell_len(character)
    return taken


def test_what_is_held_back_is_one_word() -> None:
    written: list[str] = []
    wrapping = Wrapping(written.append, lambda: 80)
    wrapping.feed("one two thr")
    assert "".join(written) == "one two"
    wrapping.feed("ee\n")
    assert "".join(written) == "one two three\n"
