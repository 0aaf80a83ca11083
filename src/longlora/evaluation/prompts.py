"""A prompt in a model's own form, filled up to a number of the model's own tokens."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a model reads, and the words with which its answer is begun for it."""

    body: str
    question: str
    answer_start: str


def uses_chat(tokenizer: PreTrainedTokenizerBase, chat: bool) -> bool:
    """Tell whether prompts go through the tokenizer's chat template: where it has one, unless turned off."""
    return chat and tokenizer.chat_template is not None


def render(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, chat: bool) -> str:
    """Write a prompt out; in a chat the answer's first words open the model's own turn."""
    asked = f"{prompt.body}\n{prompt.question}"
    if not uses_chat(tokenizer, chat):
        return f"{asked} {prompt.answer_start}"
    turns = [{"role": "user", "content": asked}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + prompt.answer_start


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool) -> list[int]:
    """Tokenise a rendered prompt; a chat template has brought its special tokens along."""
    special = not uses_chat(tokenizer, chat)
    # verbose=False: no warning about prompts beyond the old context; they are what this is for.
    ids = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    # A prompt that ends with EOS would tell the model that all has been said.
    return ids[:-1] if special and ids and ids[-1] == tokenizer.eos_token_id else ids


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Count a text's own tokens, without special ones."""
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def tokens_from(tokenizer: PreTrainedTokenizerBase, text: str, fact: str, *, chat: bool) -> int:
    """Count the tokens from the first occurrence of a fact to the end of a rendered prompt."""
    before = encode(tokenizer, text[: text.index(fact)], chat=chat)
    return len(encode(tokenizer, text, chat=chat)) - len(before)


def largest_fitting(measure: Callable[[int], int], budget: int, *, what: str) -> int:
    """Return the most units of filler with `measure(units) <= budget` tokens, for a measure that grows about evenly.

    Interpolates: tokenising a long text is slow, and four or five times are enough.

    Raises:
        ConfigError: nothing fits, not even without filler; `what` names the test.
    """
    least = measure(0)
    if least > budget:
        raise ConfigError(
            f"{what} needs {least} tokens without any filler, and the length leaves {budget} beside the answer: raise "
            "the length"
        )
    low, low_tokens = 0, least
    high, high_tokens = _first_too_large(measure, budget, least)
    while high - low > 1:
        guess = low + (high - low) * (budget - low_tokens) // max(1, high_tokens - low_tokens)
        # A step inside, and never so small that an uneven measure would make the search crawl.
        margin = max(1, (high - low) // 16)
        guess = min(max(guess, low + margin), high - margin) if high - low > 2 else low + 1
        tokens = measure(guess)
        if tokens <= budget:
            low, low_tokens = guess, tokens
        else:
            high, high_tokens = guess, tokens
    return low


def _first_too_large(measure: Callable[[int], int], budget: int, least: int) -> tuple[int, int]:
    units = 16
    while (tokens := measure(units)) <= budget:
        growth = (tokens - least) / units
        units = max(units * 2, int((budget - least) / growth * 1.05)) if growth > 0 else units * 2
    return units, tokens
