"""What each test asks is a pure function of tokenizer and trial, fits its length, and hides the fact where it says."""

import random
import re

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from longlora.errors import ConfigError, DataError
from longlora.evaluation.haystack import Haystack, read_haystack
from longlora.evaluation.questions import Question, RetrievalTest, TrialId, check_digits, encode, trial_grid
from longlora.evaluation.retrieval_tests import needle, passkey, recall, topics

TESTS = {
    "passkey": passkey(),
    "needle": needle(),
    "needles": needle(num_needles=3),
    "recall": recall(num_pairs=4),
    "topics": topics(),
}
LENGTH = 1400


def ask(
    test: RetrievalTest, tokenizer: PreTrainedTokenizerBase, depth: float, seed: int, length: int = LENGTH
) -> Question:
    return test.ask(tokenizer, TrialId(test.name, length, depth, 0, seed))


def text_of(tokenizer: PreTrainedTokenizerBase, question: Question) -> str:
    return tokenizer.decode(question.input_ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", TESTS)
def test_a_question_is_the_same_again_and_another_for_another_seed(
    tokenizer: PreTrainedTokenizerBase, name: str, seed: int
) -> None:
    question = ask(TESTS[name], tokenizer, 0.5, seed)
    state = random.getstate()
    assert ask(TESTS[name], tokenizer, 0.5, seed) == question
    assert random.getstate() == state
    others = [ask(TESTS[name], tokenizer, 0.5, seed + number) for number in range(1, 7)]
    assert all(other.input_ids != question.input_ids for other in others)
    # Some tests draw from some dozens of answers: one may come again, but not six times.
    assert any(other.expected != question.expected for other in others)


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("depth", [0, 0.37, 1])
def test_prompt_and_answer_fill_the_length(
    tokenizer: PreTrainedTokenizerBase, name: str, depth: float, seed: int
) -> None:
    question = ask(TESTS[name], tokenizer, depth, seed)
    free = LENGTH - len(question.input_ids) - question.max_new_tokens
    # One more word, or for topics one more exchange, would have been too long.
    assert 0 <= free < (150 if name == "topics" else 16)
    answer = ", ".join(question.expected)
    assert len(tokenizer(f" {answer}.", add_special_tokens=False)["input_ids"]) <= question.max_new_tokens


@pytest.mark.parametrize("name", TESTS)
def test_the_fact_is_in_the_prompt_and_its_distance_is_right(
    tokenizer: PreTrainedTokenizerBase, name: str, seed: int
) -> None:
    for depth in (0, 0.5, 1):
        question = ask(TESTS[name], tokenizer, depth, seed)
        text = text_of(tokenizer, question)
        for word in question.expected:
            assert len(re.findall(rf"(?<!\w){word}(?!\w)", text)) == (2 if name == "passkey" else 1)
        # Only what lies within the distance is needed, and none of it can be spared.
        start = len(question.input_ids) - question.distance
        assert question.expected[0] in tokenizer.decode(question.input_ids[start:])
        assert question.expected[0] not in tokenizer.decode(question.input_ids[start + 120 :]) or depth == 1


@pytest.mark.parametrize("name", ["passkey", "needle", "recall"])
def test_depth_places_the_fact(tokenizer: PreTrainedTokenizerBase, name: str, seed: int) -> None:
    distances = [ask(TESTS[name], tokenizer, depth, seed).distance for depth in (0, 0.25, 0.5, 0.75, 1)]
    assert distances == sorted(distances, reverse=True)
    middle = (distances[0] + distances[-1]) / 2
    assert abs(distances[2] - middle) < 0.12 * LENGTH


def test_recall_keeps_the_distance_it_was_given(tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    for depth in (0.25, 0.5, 0.6):
        question = ask(TESTS["recall"], tokenizer, depth, seed)
        wanted = round((1 - depth) * (LENGTH - question.max_new_tokens))
        assert wanted - 16 < question.distance <= wanted


def test_recall_offers_the_values_of_its_own_pairs(tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    question = ask(recall(num_pairs=6), tokenizer, 0, seed)
    assert len({len(choice) for choice in question.choices}) == 1
    context = list(question.input_ids[: question.choice_context])
    assert question.choice_context >= len(question.input_ids) - 1
    said = [tokenizer.decode(context + list(choice)).split()[-1] for choice in question.choices]
    assert said == [*question.expected, *question.distractors]
    assert set(said) == set(re.findall(r"The code of the [a-z ]+ is (\d{4})\.", text_of(tokenizer, question)))
    asked = re.search(r"What is the code of (the [a-z ]+)\?", text_of(tokenizer, question))
    assert asked and f"The code of {asked[1]} is {said[0]}." in text_of(tokenizer, question)


def test_which_pair_is_asked_for_is_drawn(byte_level: PreTrainedTokenizerFast) -> None:
    places = []
    for seed in range(40):
        question = ask(TESTS["recall"], byte_level, 0, seed)
        values = re.findall(r"The code of the [a-z ]+ is (\d{4})\.", text_of(byte_level, question))
        places.append(values.index(question.expected[0]))
    assert set(places) == {0, 1, 2, 3}


def test_recall_without_enough_values_of_one_size(byte_level: PreTrainedTokenizerFast) -> None:
    class EveryNumberIsAnotherSize:
        chat_template = None

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": [0] * int(text)} if text.strip().isdigit() else byte_level(text)

    with pytest.raises(ConfigError, match="fewer than 4 numbers of 4 digits"):
        ask(recall(num_pairs=4), EveryNumberIsAnotherSize(), 0, 0, length=900)  # type: ignore[arg-type]


def test_needles_are_spread_and_asked_for_in_order(byte_level: PreTrainedTokenizerFast, seed: int) -> None:
    question = ask(needle(num_needles=3), byte_level, 0.25, seed, length=6000)
    text = text_of(byte_level, question)
    facts = list(re.finditer(r"The magic number of (the [a-z ]+) is (\d{6})\.", text))
    assert [fact[2] for fact in facts] == list(question.expected)
    assert "What are the magic numbers of " + ", ".join(fact[1] for fact in facts) + "?" in text
    haystack_length = text.index("\nWhat are")
    assert [fact.start() / haystack_length for fact in facts] == pytest.approx([0.25, 0.5, 0.75], abs=0.04)
    assert all(fact.start() == 0 or text[fact.start() - 2] in ".!?" for fact in facts)


def test_a_haystack_of_texts(byte_level: PreTrainedTokenizerFast, seed: int) -> None:
    words = [f"w{index}" + "." * (index % 7 == 6) for index in range(700)]
    haystack = read_haystack([" ".join(words[:300]), "\n".join(words[300:])])
    assert haystack.words == tuple(words)
    question = ask(needle(haystack=haystack), byte_level, 0.5, seed, length=2000)
    text = text_of(byte_level, question).partition("\nWhat")[0]
    kept = re.sub(r" ?The magic number of [a-z ]+ is \d+\.", "", text).split()
    start = words.index(kept[0])
    assert start % 7 == 0  # at the beginning of a sentence
    assert kept == [*words[start:], *words][: len(kept)]
    # A text that is too short starts again, and one without full stops takes the fact where it should be.
    short = ask(needle(haystack=Haystack(("one", "two", "three"))), byte_level, 0.5, seed, length=2000)
    body = text_of(byte_level, short).partition("\nWhat")[0]
    assert body.index("The magic") / len(body) == pytest.approx(0.5, abs=0.04)


def test_a_haystack_without_words() -> None:
    with pytest.raises(DataError, match="contain no words"):
        read_haystack([" \n", ""])


def test_topics_are_different_and_all_opened(byte_level: PreTrainedTokenizerFast, seed: int) -> None:
    for num_topics, length in ((None, 1400), (None, 5000), (9, 5000)):
        question = ask(topics(num_topics=num_topics), byte_level, 0, seed, length=length)
        found = re.findall(r"I would like to discuss ([^.]+)\.", text_of(byte_level, question))
        assert found == [*question.expected, *question.distractors]
        assert len(set(found)) == len(found) == (num_topics or max(3, length // 650))


def original_prompt(n_garbage: int, seed: int) -> tuple[str, str]:
    """What the original's script does, written down from its description: numpy's global generator, one string."""
    np.random.seed(seed)
    prefix = np.random.randint(0, n_garbage)
    key = np.random.randint(1, 50000)
    filler = " ".join(
        ["The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."] * 5000
    )
    lines = [
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
        "about the important information there.",
        filler[:prefix],
        f"The pass key is {key}. Remember it. {key} is the pass key.",
        filler[: n_garbage - prefix],
        "What is the pass key? The pass key is",
    ]
    return "\n".join(lines), str(key)


@pytest.mark.parametrize(("length", "characters"), [(274, 1024), (1000, 3072), (2000, 7168), (12000, 44032)])
def test_the_original_form_is_the_original(byte_level: PreTrainedTokenizerFast, length: int, characters: int) -> None:
    for number in range(3):
        expected, key = original_prompt(characters, number)
        question = passkey(form="original").ask(byte_level, TrialId("passkey", length, None, number, 12345))
        assert text_of(byte_level, question) == expected
        assert question.expected == (key,)


def test_the_measured_form_has_the_original_s_words(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    test = passkey(chat=False)
    question = ask(test, chat_tokenizer, 0.5, 3)
    lines = text_of(chat_tokenizer, question).split("\n")
    theirs = original_prompt(1024, 0)[0].split("\n")
    assert (lines[0], lines[4]) == (theirs[0], theirs[4])
    assert lines[2] == re.sub(r"\d+", question.expected[0], theirs[2])
    assert lines[1][:80] == lines[3][:80] == theirs[1][:80]
    assert abs(len(lines[1]) - len(lines[3])) <= 1
    in_chat = ask(passkey(), chat_tokenizer, 0.5, 3)
    assert text_of(chat_tokenizer, in_chat).endswith("What is the pass key?\n[assistant] The pass key is")
    assert in_chat.input_ids == encode(chat_tokenizer, chat_tokenizer.decode(in_chat.input_ids), chat=True)


def test_seeds_depend_on_the_trial_alone() -> None:
    small = trial_grid("needle", lengths=[128], depths=[0.5], num_trials=2, seed=0)
    large = trial_grid("needle", lengths=[256, 128, 128], depths=[0, 0.5], num_trials=3, seed=0)
    assert set(small) < set(large)
    assert [trial.length for trial in large] == [128] * 6 + [256] * 6
    assert len({trial.seed for trial in large}) == len(large)
    assert not {trial.seed for trial in large} & {
        trial.seed for trial in trial_grid("needle", lengths=[128, 256], depths=[0, 0.5], num_trials=3, seed=1)
    }
    assert small[0].seed == 331941503  # what is published must stay what it is


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": []}, "lengths must be whole numbers above 0, at least one; got none"),
        ({"lengths": [0, 8]}, r"lengths must be .* got \[0, 8\]"),
        ({"depths": [0.5, 1.5]}, r"depths must lie between 0 .* got \[1.5\]"),
        ({"depths": []}, "depths must lie .* got none"),
        ({"num_trials": 0}, "trials must be at least 1, not 0"),
    ],
)
def test_a_grid_that_is_none(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trial_grid("x", **{"lengths": [8], "depths": [0], "num_trials": 1, "seed": 0} | arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: needle(num_needles=0), "needles must be 1 to 64, not 0"),
        (lambda: needle(num_needles=65), "needles must be 1 to 64, not 65"),
        (lambda: recall(num_pairs=1), "pairs must be 2 to 64, not 1"),
        (lambda: topics(num_topics=1), "topics must be 2 to 1200, not 1"),
    ],
)
def test_numbers_out_of_range(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("name", TESTS)
def test_a_length_without_room(byte_level: PreTrainedTokenizerFast, name: str) -> None:
    with pytest.raises(ConfigError, match=r"needs \d+ tokens without any filler, but the length leaves"):
        ask(TESTS[name], byte_level, 0, 0, length=80)


def test_the_original_form_has_a_shortest_length(byte_level: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="at least 274 tokens, not 273"):
        passkey(form="original").ask(byte_level, TrialId("passkey", 273, None, 0, 0))


def test_a_tokenizer_that_loses_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    check_digits(tokenizer)

    class LosesZeros:
        def __call__(self, text: str, **_: object) -> dict[str, str]:
            return {"input_ids": text.replace("0", "")}

        def decode(self, ids: str, **_: object) -> str:
            return ids

    with pytest.raises(DataError, match="'9072 318465' decodes to '972 318465'"):
        check_digits(LosesZeros())  # type: ignore[arg-type]
