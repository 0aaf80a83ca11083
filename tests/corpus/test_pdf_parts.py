"""The single steps from a page to its text, on words placed by hand."""

from dataclasses import replace

import pytest

from longlora.corpus.extract import pdf_notes
from longlora.corpus.pdf.asides import split_column
from longlora.corpus.pdf.columns import find_gutters, reading_order
from longlora.corpus.pdf.document import PdfText, find_references, read_paragraphs
from longlora.corpus.pdf.lines import joined, make_lines
from longlora.corpus.pdf.margins import without_margins
from longlora.corpus.pdf.paragraphs import Paragraph, Vocabulary, clean, make_paragraphs
from longlora.corpus.pdf.pdfium import Page
from longlora.corpus.pdf.words import Word


def row(text: str, left: float, baseline: float, *, size: float = 10.0, is_bold: bool = False) -> list[Word]:
    """Place a line of words whose letters are half as wide as high."""
    words = []
    for part in text.split():
        right = left + 0.5 * size * len(part)
        words.append(
            Word(
                left,
                baseline - 0.8 * size,
                right,
                baseline + 0.2 * size,
                part,
                baseline,
                size,
                is_bold,
                False,
                True,
                row=round(baseline),
            )
        )
        left = right + 0.25 * size
    return words


def page(number: int, *rows: list[Word]) -> Page:
    return Page(number, 600, [word for words in rows for word in words])


def texts(pages: list[Page]) -> list[str]:
    """The words of each page."""
    return [" ".join(word.text for word in each.words) for each in pages]


@pytest.mark.parametrize(
    ("line", "following", "expected"),
    [
        ("an exam-", "ple of it", "an example of it"),
        ("an exam\u2010", "ple of it", "an example of it"),
        ("a well-", "known word", "a well-known word"),  # the document writes it so
        ("Jean-", "Paul", "Jean-Paul"),
        ("in 1914-", "1918", "in 1914-1918"),
        ("a range -", "of words", "a range - of words"),
        ("so it was—", "and is", "so it was—and is"),
        ("one", "two", "one two"),
        ("", "two", "two"),
    ],
)
def test_joining_lines(line: str, following: str, expected: str) -> None:
    vocabulary = Vocabulary(["a well-known example", "and well-known too", "a line that ends in well-"])
    assert vocabulary.join(line, following) == expected


def test_cleaning() -> None:
    assert clean("e\ufb03cient \ufb01ne\u00a0\u2003words\u0007 x\u00b2") == "efficient fine words x²"
    assert clean("Go\u0308del") == "Gödel"
    assert clean("soft\u00adened and bro\u00ad") == "softened and bro-"
    assert clean("\ud835\udc65 in \ud800") == "𝑥 in \ufffd"  # a pair of halves, and one alone


def test_words_are_joined_as_pdfium_has_them() -> None:
    one, two = row("one two", 0, 100)
    assert joined([one, two]) == "one two"
    assert joined([replace(one, ends_at_space=False), two]) == "onetwo"


def test_a_line_whose_parts_the_file_has_in_another_order() -> None:
    words = row("is one line", 30, 100) + [replace(word, row=1) for word in row("This", 0, 100)]
    (line,) = make_lines(words, page=1)
    assert line.text == "This is one line"


def test_stacked_scripts_keep_their_order() -> None:
    base, after = row("X", 0, 100), row("Y", 12, 100)
    scripts = [*row("t", 6, 96, size=6), *row("i", 5.5, 103, size=6)]
    (line,) = make_lines([replace(word, row=1) for word in base + scripts + after], page=1)
    assert line.text == "X t i Y"


def test_a_page_whose_words_would_be_parted_stays_as_pdfium_has_it() -> None:
    apart = page(1, *(row(f"line {letter} of a text", 0, 200 + 12 * index) for index, letter in enumerate("vwxyz")))
    # Each line is printed into the one before.
    into = [
        row(f"{kind} line {letter} of these", 6 * shift, 200 + 12 * index + 3 * shift)
        for index, letter in enumerate("abcde")
        for shift, kind in enumerate(("one", "another"))
    ]
    paragraphs, _, as_they_are = read_paragraphs([apart, page(2, *into)])
    assert as_they_are == [2]
    text = " ".join(it.text for it in paragraphs)
    assert all(f"{kind} line {letter} of these" in text for kind in ("one", "another") for letter in "abcde")


def test_superscripts_stay_in_their_line() -> None:
    raised = row("2", 35, 96.5, size=6)
    (line, below) = make_lines(raised + row("area of", 0, 100) + row("next line", 0, 112), page=1)
    assert line.text == "area of 2" and below.text == "next line"
    assert line.is_raised(line.words[-1]) and not line.is_raised(line.words[0])


def columns_page(number: int, left: float = 40, right: float = 220) -> Page:
    prose = "and so the prose of it goes on"
    return page(
        number,
        row("A title that runs across both of the columns of this page", 60, 50),
        *(row(f"L{index} {prose}", left, 80 + 12 * index) for index in range(12)),
        *(row(f"R{index} {prose}", right, 80 + 12 * index) for index in range(12)),
        row("A wide remark at the end of the page, below both of them", 60, 250),
    )


def test_columns_are_read_one_after_the_other() -> None:
    order = [word.text for column in reading_order(columns_page(1).words) for word in column]
    marks = [text for text in order if text[0] in "LR" and text[1:].isdigit()]
    assert marks == [f"L{index}" for index in range(12)] + [f"R{index}" for index in range(12)]
    assert order[:2] == ["A", "title"] and order[-2:] == ["of", "them"]


def test_a_table_is_not_read_by_columns() -> None:
    rows = [row(f"name{index}", 40, 80 + 12 * index) + row(f"{index}.5", 220, 80 + 12 * index) for index in range(12)]
    (column,) = reading_order([word for words in rows for word in words])
    assert [word.text for word in column][:4] == ["name0", "0.5", "name1", "1.5"]


def in_rows(words: list[Word]) -> list[Word]:
    """Words as a file has them that is written line by line over its columns."""
    return sorted(words, key=lambda word: word.baseline)


def test_columns_that_the_file_has_row_by_row() -> None:
    order = [word.text for column in reading_order(in_rows(columns_page(1).words)) for word in column]
    marks = [text for text in order if text[0] in "LR" and text[1:].isdigit()]
    assert marks == [f"L{index}" for index in range(12)] + [f"R{index}" for index in range(12)]


def test_the_order_of_the_file_tells_of_columns_that_white_does_not() -> None:
    index = [row(f"word {number}", left, 80 + 12 * number) for left in (40, 120, 200) for number in range(8)]
    columns = reading_order([word for words in index for word in words])
    assert [column[0].left for column in columns] == [40, 120, 200]


def test_other_pages_tell_of_a_gutter() -> None:
    short = page(
        3, *(row(f"L{i} with some prose here", 40, 80 + 12 * i) for i in range(3)),
        *(row(f"R{i} with some prose here", 220, 80 + 12 * i) for i in range(3)),
    )  # fmt: skip
    words = in_rows(short.words)
    assert len(reading_order(words)) == 1
    known = find_gutters([columns_page(1), columns_page(2)])
    left, right = reading_order(words, known)
    assert left[0].text == "L0" and right[0].text == "R0"


def test_heads_and_numbers_are_left_out() -> None:
    pages = [
        page(
            number,
            row("A Head That Changes" if number < 4 else "The Next Chapter", 40, 30) + row(str(number + 10), 300, 30),
            row(f"body {chr(96 + number)} begins here", 40, 80),
            row("1914", 40, 92),  # a number in the text
            row(f"– {number} –", 180, 560),
        )
        for number in range(1, 8)
    ]
    assert texts(without_margins(pages)[0]) == [f"body {chr(96 + number)} begins here 1914" for number in range(1, 8)]


def test_the_number_of_a_first_page_may_stand_at_the_foot() -> None:
    pages = [
        page(
            number,
            *([row("Head", 40, 30) + row(str(number + 5), 300, 30)] if number > 1 else []),
            row(f"The text of {chr(96 + number)}.", 40, 80),
            *([row("6", 180, 560)] if number == 1 else []),
        )
        for number in range(1, 6)
    ]
    assert texts(without_margins(pages)[0]) == [f"The text of {letter}." for letter in "abcde"]


def test_headings_of_short_chapters_stay() -> None:
    pages = [
        page(number, row(f"Chapter {number // 2}" if number % 2 else "goes on here", 40, 30 + number % 2))
        for number in range(2, 10)
    ]
    found = texts(without_margins(pages)[0])
    assert found[1::2] == ["Chapter 1", "Chapter 2", "Chapter 3", "Chapter 4"]


def test_a_first_line_that_is_no_head_stays() -> None:
    pages = [page(number, row(f"It begins {'abcdefg'[number]}", 40, 30), row("same", 40, 42)) for number in range(5)]
    assert texts(without_margins(pages)[0])[0].startswith("It begins a")


def paragraphs(*rows: list[Word], size: float = 10.0) -> list[str]:
    words = [word for words in rows for word in words]
    lines = make_lines(words, page=1)
    return [it.text for it in make_paragraphs(list(split_column(lines, body_size=size, page_height=600)))]


def test_paragraphs_begin_with_an_indent() -> None:
    assert paragraphs(
        row("The first line of it all goes on", 50, 80),
        row("and here is the second one of these", 40, 92),
        row("Another one begins at this place", 50, 104),
        row("and ends here.", 40, 116),
    ) == ["The first line of it all goes on and here is the second one of these", "Another one begins at this place and ends here."]  # fmt: skip  # noqa: E501


def test_paragraphs_begin_after_a_gap_and_headings_stand_alone() -> None:
    assert paragraphs(
        row("1 A heading", 40, 60, size=12, is_bold=True),
        row("The text below it is one long paragraph", 40, 80),
        row("of two lines.", 40, 92),
        row("And after a gap there is the next.", 40, 112),
    ) == ["1 A heading", "The text below it is one long paragraph of two lines.", "And after a gap there is the next."]


def test_footnotes_follow_the_paragraph_and_their_marks_go() -> None:
    body = row("This is said of a thing", 40, 500)
    mark = row("1", body[-1].right + 0.2, 496.5, size=6)
    found = paragraphs(
        row("A text with a remark in it, and then", 40, 488),
        body + mark + row("that is odd.", body[-1].right + 8, 500),
        row("1", 40, 556.5, size=5) + row("Odd in that it has a note.", 44, 560, size=8),
        row("Which goes on.", 40, 570, size=8),
    )
    assert found == [
        "A text with a remark in it, and then This is said of a thing that is odd.",
        "[Footnote 1: Odd in that it has a note. Which goes on.]",
    ]


def test_a_note_goes_on_at_the_foot_of_the_next_page() -> None:
    body = [row("A text that fills its line quite well, and", 40, 80 + 12 * index) for index in range(4)]
    mark = row("1", 40, 556.5, size=5)
    first = page(1, *body, mark + row("A note that is too long for what room", 44, 560, size=8))
    second = page(2, *body[:3], row("here it ends.", 40, 116), row("there was here.", 40, 560, size=8))
    found = [it.text for it in read_paragraphs([first, second])[0]]
    assert found[-1] == "[Footnote 1: A note that is too long for what room there was here.]"
    assert found[0].endswith("here it ends.") and "there was" not in found[0]


@pytest.mark.parametrize("size", [8, 10])  # of type as large as the text's, and smaller
@pytest.mark.parametrize("edge", ["foot", "head", "foot across"])
def test_a_broken_word_is_joined_over_lines_that_stand_there_once(edge: str, size: float) -> None:
    others = [row(line, 40, 0, size=size) for line in ("Submitted to a journal", "in the spring of that year")]

    def placed(*baselines: float) -> list[list[Word]]:
        rows = zip(others, baselines, strict=True)
        return [[replace(word, baseline=y, top=y - 8, bottom=y + 2, row=int(y)) for word in words] for words, y in rows]

    body = [row("A text that fills its line quite well, and", 40, 80 + 12 * index) for index in range(4)]
    rest = [row("ple that goes on and on, and at last it", 40, 80), row("ends here.", 40, 92)]
    if edge == "foot across":
        right = [row("A text that fills its line quite well, and", 240, 80 + 12 * index) for index in range(4)]
        pages = [page(1, *body, *right, row("of it an exam-", 240, 128), *placed(300, 312)), page(2, *rest)]
    elif edge == "foot":
        pages = [page(1, *body, row("of it an exam-", 40, 128), *placed(300, 312)), page(2, *rest)]
    else:
        pages = [page(1, *body, row("of it an exam-", 40, 128)), page(2, *placed(30, 42), *rest)]
    found = [it.text for it in read_paragraphs(pages)[0]]
    assert any(text.endswith("of it an example that goes on and on, and at last it ends here.") for text in found)
    assert " ".join(found[1:]).endswith("Submitted to a journal in the spring of that year")


def test_what_follows_a_word_with_a_hyphen_keeps_its_place() -> None:
    lines = [
        row(f"{word} text of its own goes on here.", 40, 220 + 12 * at) for at, word in enumerate(("A", "A", "A", "A"))
    ]
    found = paragraphs(row("This ends in a hyphen: pre-", 40, 80), row("A HEADING", 40, 200, size=12), *lines)
    assert found[:2] == ["This ends in a hyphen: pre-", "A HEADING"]


def test_the_number_of_a_note_is_not_that_of_the_page() -> None:
    pages = [
        page(
            number,
            row("Head", 40, 30) + row(str(number), 300, 30),
            row(f"The text of {chr(96 + number)}.", 40, 80),
            *([row("3", 40, 556.5, size=5) + row("A note.", 44, 560, size=8)] if number == 3 else []),
        )
        for number in range(1, 6)
    ]
    assert texts(without_margins(pages)[0])[2] == "The text of c. 3 A note."


@pytest.mark.parametrize(
    ("line", "expected"),
    [("Fig. 3. What we saw there.", "[Figure 3: What we saw there.]"), ("TABLE IV", "[Table IV]")],
)
def test_captions_are_marked(line: str, expected: str) -> None:
    found = paragraphs(row("Some text above it, which ends here.", 40, 80), row(line, 40, 120, size=9))
    assert found == ["Some text above it, which ends here.", expected]


def test_a_sentence_on_a_figure_is_no_caption() -> None:
    lines = ["It is seen that this is so, as", "Figure 3 shows for all of the sizes", "that we have tried."]
    rows = [row(line, 40, 80 + 12 * index) for index, line in enumerate(lines)]
    assert paragraphs(*rows) == [" ".join(lines)]


def listed(*parts: str) -> list[Paragraph]:
    lines = [make_lines(row(part, 40, 80), page=1) for part in parts]
    return [Paragraph("body", line, text=part) for part, line in zip(parts, lines, strict=True)]


ENTRIES = ["[1] One. 1999.", "[2] Two. 2001.", "[3] Three. 2020."]


def test_references_end_where_an_appendix_begins() -> None:
    assert find_references(listed("Text.", "References", *ENTRIES, "A Further results", "More.")) == range(1, 5)
    assert find_references(listed("Text.", "7. Bibliography", *ENTRIES)) == range(1, 5)


def test_a_chapter_called_references_is_none() -> None:
    assert find_references(listed("References", "This chapter is on how letters refer.", "And so on.")) == range(0)
    assert find_references(listed("Text.", *ENTRIES)) == range(0)


def notes_on(text: str) -> list[str]:
    read = PdfText(
        text=text,
        title="",
        num_pages=1,
        pages_without_text=[],
        pages_as_they_are=[],
        paragraphs=[],
        left_out={},
    )
    return pdf_notes(read)


def test_a_drawing_made_of_characters_is_noted() -> None:
    told = ["2 of 5 words have no letter or digit: maybe a drawing made of characters"]
    assert notes_on("Кит ❚❥ ❖❄ O2 лес") == told
    assert notes_on("One – two three four.") == []


@pytest.mark.parametrize(("word", "share"), [("שלום", "40%"), ("سلام", "40%"), ("word", "")])
def test_a_text_from_right_to_left_is_noted(word: str, share: str) -> None:
    assert notes_on(f"{word} {'abcdef'} 123") == (
        [f"{share} of the letters are written from right to left: words may be split or out of order"] if share else []
    )
