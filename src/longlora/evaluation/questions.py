"""The one shape of every retrieval test: a trial has a name, a prompt filled up to its length, an answer and scores."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError, DataError


class TrialId(NamedTuple):
    """What names a trial, and with the test's settings decides every token of it."""

    test: str
    length: int  # tokens of prompt and answer together
    depth: float | None  # share of the filler before the fact, 0 to 1; None if the test draws or fixes the place
    number: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt in tokens, and what a right answer holds."""

    input_ids: Sequence[int]
    expected: tuple[str, ...]  # the answer must hold all of them
    max_new_tokens: int
    distance: int  # tokens from the beginning of the (farthest) fact to the end of the prompt
    distractors: tuple[str, ...] = ()  # wrong answers of the prompt: one of them before the right one spoils the answer
    choices: tuple[tuple[int, ...], ...] = ()  # continuations to compare by likelihood, the right one first
    choice_context: int = 0  # tokens of `input_ids` that all continuations go on from


@dataclass(frozen=True, kw_only=True)
class RetrievalTest:
    """A test: how its trials are made, and what else but their identity decides them."""

    name: str
    ask: Callable[[PreTrainedTokenizerBase, TrialId], Question]
    settings: dict[str, Any]
    # The scores between 0 and 1 that are reported, each with its chance level; the first gives the verdict.
    measures: dict[str, float] = field(default_factory=lambda: {"generated": 0.0})
    has_depths: bool = True


@dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """A trial with its answer and its scores: one line of `trials.jsonl`."""

    test: str
    length: int
    depth: float | None
    number: int
    seed: int
    num_tokens: int  # of the prompt
    distance: int
    expected: list[str]
    answer: str
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        assert all(map(math.isfinite, self.scores.values())), f"a score is no finite number: {self.scores}"

    @property
    def identity(self) -> TrialId:
        """The name of the trial."""
        return TrialId(self.test, self.length, self.depth, self.number, self.seed)


def trial_grid(
    test: str, *, lengths: Iterable[int], depths: Iterable[float | None], num_trials: int, seed: int
) -> list[TrialId]:
    """Name every trial, the shortest length first; a trial's seed depends on its own name and `seed` alone.

    Raises:
        ConfigError: a number is out of its range.
    """
    lengths = sorted(set(lengths))
    # 0 and 0.0 must be one depth: a seed is made of how it is written.
    depths = list(dict.fromkeys(None if depth is None else float(depth) for depth in depths))
    if not lengths or lengths[0] < 1:
        raise ConfigError(f"lengths must be whole numbers above 0, at least one; got {lengths or 'none'}")
    wrong = [depth for depth in depths if depth is not None and not 0 <= depth <= 1]
    if not depths or wrong:
        raise ConfigError(f"depths must lie between 0 (beginning) and 1 (end), at least one; got {wrong or 'none'}")
    if num_trials < 1:
        raise ConfigError(f"trials must be at least 1, not {num_trials}")

    def trial(length: int, depth: float | None, number: int) -> TrialId:
        name = f"{seed} {test} {length} {depth} {number}"
        return TrialId(test, length, depth, number, random.Random(name).randrange(2**32))

    return [trial(length, depth, number) for length in lengths for depth in depths for number in range(num_trials)]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A question to which filler can still be added, in units of its own: words, characters, turns."""

    tokenizer: PreTrainedTokenizerBase
    chat: bool
    body: Callable[[int], str]
    question: str
    answer_start: str
    fact: str
    expected: tuple[str, ...]
    max_new_tokens: int
    distractors: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def text(self, num_units: int) -> str:
        """Write the prompt with so much filler."""
        asked = f"{self.body(num_units)}\n{self.question}"
        return render(self.tokenizer, asked, self.answer_start, chat=self.chat)

    def size(self, num_units: int) -> int:
        """Count the tokens of the prompt with so much filler."""
        return len(encode(self.tokenizer, self.text(num_units), chat=self.chat))

    def distance(self, num_units: int) -> int:
        """Count the tokens from the fact to the end of the prompt with so much filler."""
        return tokens_from(self.tokenizer, self.text(num_units), self.fact, chat=self.chat)

    def filled(self, length: int, *, what: str) -> Question:
        """Add as much filler as leaves room for the answer.

        Raises:
            ConfigError: the length has no room for the bare prompt.
        """
        return self.finished(largest_fitting(self.size, length - self.max_new_tokens, what=what))

    def finished(self, num_units: int) -> Question:
        """Tokenise the prompt with so much filler."""
        text = self.text(num_units)
        input_ids = encode(self.tokenizer, text, chat=self.chat)
        # Prompt and choice are tokenised in one, and cut where all of them and the bare prompt stop being the same.
        whole = [encode(self.tokenizer, f"{text} {choice}", chat=self.chat) for choice in self.choices]
        columns = enumerate(zip(input_ids, *whole, strict=False))
        common = next((place for place, ids in columns if len(set(ids)) > 1), min(map(len, [input_ids, *whole])))
        return Question(
            input_ids=input_ids,
            expected=self.expected,
            max_new_tokens=self.max_new_tokens,
            distance=tokens_from(self.tokenizer, text, self.fact, chat=self.chat),
            distractors=self.distractors,
            choices=tuple(tuple(ids[common:]) for ids in whole),
            choice_context=common if self.choices else 0,
        )


def uses_chat(tokenizer: PreTrainedTokenizerBase, chat: bool) -> bool:
    """Tell whether prompts go through the tokenizer's chat template: where it has one, unless turned off."""
    return chat and tokenizer.chat_template is not None


def render(tokenizer: PreTrainedTokenizerBase, asked: str, answer_start: str, *, chat: bool) -> str:
    """Write a prompt out; in a chat the answer's first words open the model's own turn."""
    if not uses_chat(tokenizer, chat):
        return f"{asked} {answer_start}"
    turns = [{"role": "user", "content": asked}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + answer_start


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


def check_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not give digits back as they were.

    Raises:
        DataError: a number read by the tokenizer comes out as another text.
    """
    number = "9072 318465"
    back = tokenizer.decode(tokenizer(number, add_special_tokens=False)["input_ids"], skip_special_tokens=True)
    if back.split() != number.split():
        raise DataError(
            f"the tokenizer must give digits back as they were, but {number!r} comes back as {back!r}: the tests of "
            "retrieval ask for numbers and cannot judge this model's answers"
        )
