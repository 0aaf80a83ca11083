"""Recall of key-value pairs at a controlled distance, by generation and by forced choice.

Forced choice gives a graded signal where generation is all or nothing: the model's likelihoods of the right value and
of the values of the other pairs of the same prompt are compared. Chance is one in `num_pairs`, whatever the model knows
about numbers, because all values were drawn in the same way and have the same number of tokens.
"""

import random
from functools import partial

from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError
from longlora.evaluation.haystack import Haystack, names, numbers
from longlora.evaluation.prompts import Prompt, count_tokens, encode, largest_fitting, render, tokens_from
from longlora.evaluation.trials import Question, RetrievalTest, TrialId

_DIGITS = 4
_ROOM = 4
MOST_PAIRS = 64


def recall(*, num_pairs: int = 8, haystack: Haystack | None = None, chat: bool = True) -> RetrievalTest:
    """Return the test with so many pairs in a block, between filler from a user's text or made-up sentences.

    Raises:
        ConfigError: the number of pairs is out of its range.
    """
    if not 2 <= num_pairs <= MOST_PAIRS:
        raise ConfigError(f"pairs must be 2 to {MOST_PAIRS}, not {num_pairs}")
    haystack = haystack or Haystack()
    return RetrievalTest(
        name="recall",
        ask=partial(recall_question, num_pairs=num_pairs, haystack=haystack, chat=chat),
        settings={"num_pairs": num_pairs, "haystack": haystack.identity, "chat": chat},
        measures={"generated": 0.0, "chosen": 1 / num_pairs},
    )


def recall_question(
    tokenizer: PreTrainedTokenizerBase,
    trial: TrialId,
    *,
    num_pairs: int = 8,
    haystack: Haystack | None = None,
    chat: bool = True,
) -> Question:
    """Ask for the value of one of the pairs, which stands `(1 - depth)` of the prompt before its end.

    Filler after the block is measured so that the asked pair begins at most that many tokens before the end; filler
    before it makes up the rest. At depth 0 the block opens the prompt. Which pair is asked for is drawn.

    Raises:
        ConfigError: the length has no room for the pairs and the question.
    """
    rng = random.Random(trial.seed)
    keys, values = names(rng, num_pairs), _values(tokenizer, rng, num_pairs)
    asked = rng.randrange(num_pairs)
    pairs = [f"The code of the {key} is {value}." for key, value in zip(keys, values, strict=True)]
    before, after = ((haystack or Haystack()).stream(rng.randrange(2**32)) for _ in range(2))
    max_new_tokens = count_tokens(tokenizer, f" {values[asked]}.") + _ROOM
    budget = trial.length - max_new_tokens

    def text(words_before: int, words_after: int) -> str:
        parts = [" ".join(before.take(words_before)), "\n".join(pairs), " ".join(after.take(words_after))]
        prompt = Prompt(
            body="\n".join(part for part in parts if part),
            question=f"What is the code of the {keys[asked]}?",
            answer_start=f"The code of the {keys[asked]} is",
        )
        return render(tokenizer, prompt, chat=chat)

    def size(words_before: int, words_after: int) -> int:
        return len(encode(tokenizer, text(words_before, words_after), chat=chat))

    def reach(words_after: int) -> int:
        return tokens_from(tokenizer, text(0, words_after), pairs[asked], chat=chat)

    num_after = largest_fitting(lambda count: size(0, count), budget, what=f"recall of {num_pairs} pairs")
    distance = max(round((1 - (trial.depth or 0.0)) * budget), reach(0))
    if reach(num_after) > distance:
        num_after = largest_fitting(reach, distance, what="recall")
    num_before = largest_fitting(lambda count: size(count, num_after), budget, what="recall")
    final = text(num_before, num_after)
    input_ids = encode(tokenizer, final, chat=chat)
    ordered = [values[asked], *values[:asked], *values[asked + 1 :]]
    context, choices = _choices(tokenizer, final, input_ids, ordered, chat=chat)
    return Question(
        input_ids=input_ids,
        expected=(values[asked],),
        distractors=tuple(ordered[1:]),
        max_new_tokens=max_new_tokens,
        distance=tokens_from(tokenizer, final, pairs[asked], chat=chat),
        choices=choices,
        choice_context=context,
    )


def _values(tokenizer: PreTrainedTokenizerBase, rng: random.Random, count: int) -> list[str]:
    """Draw values of the same number of tokens, so that their likelihoods can be compared."""
    by_size: dict[int, list[str]] = {}
    # 9,000 values in at most a handful of sizes: a size with 64 of them is there long before the end.
    for value in numbers(rng, 9 * 10 ** (_DIGITS - 1), _DIGITS):
        alike = by_size.setdefault(count_tokens(tokenizer, f" {value}"), [])
        alike.append(value)
        if len(alike) == count:
            return alike
    raise ConfigError(f"the tokenizer writes fewer than {count} numbers of {_DIGITS} digits with as many tokens each")


def _choices(
    tokenizer: PreTrainedTokenizerBase, text: str, input_ids: list[int], values: list[str], *, chat: bool
) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """Tokenise prompt and value in one, and cut where all of them and the bare prompt stop being the same."""
    whole = [encode(tokenizer, f"{text} {value}", chat=chat) for value in values]
    common = 0
    for column in zip(input_ids, *whole, strict=False):
        if len(set(column)) > 1:
            break
        common += 1
    return common, tuple(tuple(ids[common:]) for ids in whole)
