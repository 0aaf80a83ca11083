"""Prompts take a model's own form, and are filled up to its own tokens."""

import bisect
import random

import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from longlora.errors import ConfigError
from longlora.evaluation.questions import count_tokens, encode, largest_fitting, render, tokens_from

PROMPT = ("The door is red.\nWhich colour?", "It is")


def test_largest_fitting_equals_bisection_on_uneven_measures(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        steps = [rng.choice([0, 1, 1, 3, 40]) for _ in range(3000)]
        sizes = [rng.randrange(50)]
        for step in steps:
            sizes.append(sizes[-1] + step)
        budget = rng.randrange(sizes[0], sizes[-1])
        calls = 0

        def measure(count: int, sizes: list[int] = sizes) -> int:
            nonlocal calls
            calls += 1
            return sizes[count] if count < len(sizes) else sizes[-1] + 10 * (count - len(sizes))

        assert largest_fitting(measure, budget, what="x") == bisect.bisect_right(sizes, budget) - 1
        assert calls < 40


def test_an_even_measure_is_found_in_few_steps() -> None:
    calls = []

    def measure(count: int) -> int:
        calls.append(count)
        return 100 + count // 4

    assert largest_fitting(measure, 100_000, what="x") == 4 * 99_900 + 3
    assert len(calls) <= 16


def test_nothing_fits() -> None:
    with pytest.raises(ConfigError, match="x needs 7 tokens without any filler, but the length leaves 6"):
        largest_fitting(lambda count: 7 + count, 6, what="x")


def test_plain_and_chat(byte_level: PreTrainedTokenizerFast, chat_tokenizer: PreTrainedTokenizerFast) -> None:
    plain = "The door is red.\nWhich colour? It is"
    chat = "<s>[user] The door is red.\nWhich colour?\n[assistant] It is"
    assert render(byte_level, *PROMPT, chat=True) == render(byte_level, *PROMPT, chat=False) == plain
    assert render(chat_tokenizer, *PROMPT, chat=False) == plain
    assert render(chat_tokenizer, *PROMPT, chat=True) == chat
    ids = encode(chat_tokenizer, chat, chat=True)
    assert ids[0] == chat_tokenizer.bos_token_id and chat_tokenizer.bos_token_id not in ids[1:]


def test_a_prompt_does_not_end_with_eos(byte_level: PreTrainedTokenizerFast) -> None:
    class EndsWithEos:
        chat_template = None
        eos_token_id = byte_level.eos_token_id

        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            return {"input_ids": [*byte_level(text)["input_ids"], byte_level.eos_token_id]}

    assert encode(EndsWithEos(), "abc", chat=True) == byte_level("abc")["input_ids"]  # type: ignore[arg-type]


def test_tokens_from_a_fact(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "The sea was calm. The code is 42. A ship lay still."
    distance = tokens_from(tokenizer, text, "The code is 42.", chat=True)
    # A space may go with the token before or behind it, or with neither.
    assert abs(distance - count_tokens(tokenizer, "The code is 42. A ship lay still.")) <= 1
