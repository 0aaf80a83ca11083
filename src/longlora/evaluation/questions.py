"""The common structure of retrieval tests: trials, and prompts filled up to a given length."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError, DataError
from longlora.models.chat_template import render_chat


class TrialId(NamedTuple):
    """Identifies a trial; with the test's settings it determines every token of the prompt."""

    test: str
    length: int  # tokens of prompt and answer together
    depth: float | None  # share of the filler before the fact, 0 to 1; None if the test itself places the fact
    number: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Question:
    """A tokenized prompt, and what a correct answer contains."""

    input_ids: Sequence[int]
    expected: tuple[str, ...]  # the answer must contain all of them
    max_new_tokens: int
    distance: int  # tokens from the beginning of the (farthest) fact to the end of the prompt
    distractors: tuple[str, ...] = ()  # wrong answers from the prompt; one before the right answer makes it wrong
    choices: tuple[tuple[int, ...], ...] = ()  # continuations to compare by likelihood, the right one first
    choice_context: int = 0  # number of tokens of `input_ids` that all continuations follow


@dataclass(frozen=True, kw_only=True)
class RetrievalTest:
    """A retrieval test: how to build its trials, and the settings that determine them."""

    name: str
    ask: Callable[[PreTrainedTokenizerBase, TrialId], Question]
    settings: dict[str, Any]
    num_choices: int = 0  # of a forced choice, if there is one
    has_depths: bool = True

    @property
    def measures(self) -> dict[str, float]:
        """The scores (0 to 1) to report, each with its chance level; the first gives the verdict."""
        return {"generated": 0.0} | ({"chosen": 1 / self.num_choices} if self.num_choices else {})


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
        assert all(map(math.isfinite, self.scores.values())), f"a score is not finite: {self.scores}"

    @property
    def identity(self) -> TrialId:
        """The trial's identity."""
        return TrialId(self.test, self.length, self.depth, self.number, self.seed)


def trial_grid(
    test: str, *, lengths: Iterable[int], depths: Iterable[float | None], num_trials: int, seed: int
) -> list[TrialId]:
    """List all trials, the shortest length first; a trial's seed depends only on its identity and `seed`.

    Raises:
        ConfigError: a number is out of range.
    """
    lengths = sorted(set(lengths))
    # 0 and 0.0 must be the same depth: the seed is derived from its text.
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
class QuestionDraft:
    """A question with an adjustable amount of filler, in units of its own: words, characters or turns.

    With `choices`, the right one first, `expected` and `distractors` follow from them.
    """

    tokenizer: PreTrainedTokenizerBase
    chat: bool
    body: Callable[[int], str]
    question: str
    answer_start: str
    fact: str
    max_new_tokens: int
    expected: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def text(self, num_units: int) -> str:
        """Return the prompt with `num_units` of filler."""
        asked = f"{self.body(num_units)}\n{self.question}"
        return render(self.tokenizer, asked, self.answer_start, chat=self.chat)

    def size(self, num_units: int) -> int:
        """Count the tokens of the prompt with `num_units` of filler."""
        return len(encode(self.tokenizer, self.text(num_units), chat=self.chat))

    def distance(self, num_units: int) -> int:
        """Count the tokens from the fact to the end of the prompt with `num_units` of filler."""
        return tokens_from(self.tokenizer, self.text(num_units), self.fact, chat=self.chat)

    def filled(self, length: int, *, what: str) -> Question:
        """Add as much filler as fits into `length` beside the answer.

        Raises:
            ConfigError: the prompt does not fit even without filler.
        """
        return self.finished(largest_fitting(self.size, length - self.max_new_tokens, what=what))

    def finished(self, num_units: int) -> Question:
        """Tokenize the prompt with `num_units` of filler."""
        text = self.text(num_units)
        input_ids = encode(self.tokenizer, text, chat=self.chat)
        # Prompt and choice are tokenized together, then split at the end of their common prefix with the bare prompt.
        whole = [encode(self.tokenizer, f"{text} {choice}", chat=self.chat) for choice in self.choices]
        columns = enumerate(zip(input_ids, *whole, strict=False))
        common = next((place for place, ids in columns if len(set(ids)) > 1), min(map(len, [input_ids, *whole])))
        return Question(
            input_ids=input_ids,
            expected=self.expected or self.choices[:1],
            max_new_tokens=self.max_new_tokens,
            distance=tokens_from(self.tokenizer, text, self.fact, chat=self.chat),
            distractors=self.distractors or self.choices[1:],
            choices=tuple(tuple(ids[common:]) for ids in whole),
            choice_context=common if self.choices else 0,
        )


def uses_chat(tokenizer: PreTrainedTokenizerBase, chat: bool) -> bool:
    """Return whether prompts use the chat template: if the tokenizer has one and `chat` is not turned off."""
    return chat and tokenizer.chat_template is not None


def render(tokenizer: PreTrainedTokenizerBase, asked: str, answer_start: str, *, chat: bool) -> str:
    """Render a prompt as text; in a chat, `answer_start` begins the model's turn."""
    if not uses_chat(tokenizer, chat):
        return f"{asked} {answer_start}"
    return render_chat(tokenizer, [{"role": "user", "content": asked}], ask=True) + answer_start


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool) -> list[int]:
    """Tokenize a rendered prompt; a chat template has already added the special tokens."""
    special = not uses_chat(tokenizer, chat)
    # verbose=False: prompts longer than the base context are intended here and need no warning.
    ids = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    # After a trailing EOS, the model would not answer.
    return ids[:-1] if special and ids and ids[-1] == tokenizer.eos_token_id else ids


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Count a text's tokens, without special tokens."""
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def tokens_from(tokenizer: PreTrainedTokenizerBase, text: str, fact: str, *, chat: bool) -> int:
    """Count the tokens from the first occurrence of a fact to the end of a rendered prompt."""
    before = encode(tokenizer, text[: text.index(fact)], chat=chat)
    return len(encode(tokenizer, text, chat=chat)) - len(before)


def largest_fitting(measure: Callable[[int], int], budget: int, *, what: str) -> int:
    """Return the largest number of units with `measure(units) <= budget` tokens; `measure` should grow about linearly.

    Tokenizing a long text is slow: interpolation needs only four or five calls.

    Raises:
        ConfigError: even the prompt without filler does not fit; `what` names the test.
    """
    least = measure(0)
    if least > budget:
        raise ConfigError(
            f"{what} needs {least} tokens without any filler, but the length leaves {budget} beside the answer: raise "
            "the length"
        )
    low, low_tokens = 0, least
    high, high_tokens = _first_too_large(measure, budget, least)
    while high - low > 1:
        guess = low + (high - low) * (budget - low_tokens) // max(1, high_tokens - low_tokens)
        # Stay inside the interval, with a minimum step so that an uneven measure cannot make the search crawl.
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
    """Check that a tokenizer preserves digits.

    Raises:
        DataError: a number changes when encoded and decoded.
    """
    number = "9072 318465"
    back = tokenizer.decode(tokenizer(number, add_special_tokens=False)["input_ids"], skip_special_tokens=True)
    if back.split() != number.split():
        raise DataError(
            f"the tokenizer must preserve digits, but {number!r} decodes to {back!r}: retrieval tests ask for numbers "
            "and cannot judge this model's answers"
        )
