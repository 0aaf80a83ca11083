"""Needles in a haystack: one or several facts in a text about other things (after Kamradt 2023 and RULER 2024)."""

import random
from functools import partial

from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError
from longlora.evaluation.haystack import Haystack, Words, names, numbers
from longlora.evaluation.prompts import Prompt, count_tokens, encode, largest_fitting, render, tokens_from
from longlora.evaluation.trials import Question, RetrievalTest, TrialId

_DIGITS = 6
_ROOM = 16
MOST_NEEDLES = 64


def needle(*, num_needles: int = 1, haystack: Haystack | None = None, chat: bool = True) -> RetrievalTest:
    """Return the test with so many needles, hidden in a user's text or in made-up sentences.

    Raises:
        ConfigError: the number of needles is out of its range.
    """
    if not 1 <= num_needles <= MOST_NEEDLES:
        raise ConfigError(f"needles must be 1 to {MOST_NEEDLES}, not {num_needles}")
    haystack = haystack or Haystack()
    return RetrievalTest(
        name="needle",
        ask=partial(needle_question, num_needles=num_needles, haystack=haystack, chat=chat),
        settings={"num_needles": num_needles, "haystack": haystack.identity, "chat": chat},
        measures={"generated": 0.0},
    )


def needle_question(
    tokenizer: PreTrainedTokenizerBase,
    trial: TrialId,
    *,
    num_needles: int = 1,
    haystack: Haystack | None = None,
    chat: bool = True,
) -> Question:
    """Hide numbers of named things, the first at `trial.depth`, the others spread evenly from there to the end.

    All are asked for, in the order of the text, and the trial counts as right if the answer holds all of them.

    Raises:
        ConfigError: the length has no room for the needles and the question.
    """
    rng = random.Random(trial.seed)
    things, codes = names(rng, num_needles), numbers(rng, num_needles, _DIGITS)
    words = (haystack or Haystack()).stream(rng.randrange(2**32))
    facts = [f"The magic number of the {thing} is {code}." for thing, code in zip(things, codes, strict=True)]
    depth = trial.depth or 0.0
    depths = [depth + (1 - depth) * index / num_needles for index in range(num_needles)]

    def text(num_words: int) -> str:
        return render(tokenizer, _prompt(_hide(facts, depths, words, num_words), things), chat=chat)

    answer = " ".join(f"The magic number of the {thing} is {code}," for thing, code in zip(things, codes, strict=True))
    max_new_tokens = count_tokens(tokenizer, answer) + _ROOM
    num_words = largest_fitting(
        lambda count: len(encode(tokenizer, text(count), chat=chat)), trial.length - max_new_tokens, what="needle"
    )
    return Question(
        input_ids=encode(tokenizer, text(num_words), chat=chat),
        expected=tuple(codes),
        max_new_tokens=max_new_tokens,
        distance=tokens_from(tokenizer, text(num_words), facts[0], chat=chat),
    )


def _hide(facts: list[str], depths: list[float], words: Words, num_words: int) -> str:
    parts, done = list[str](), 0
    for fact, depth in zip(facts, depths, strict=True):
        place = words.sentence_start(num_words, depth)
        parts += [*words.take(num_words)[done:place], fact]
        done = place
    return " ".join([*parts, *words.take(num_words)[done:]])


def _prompt(body: str, things: list[str]) -> Prompt:
    what = ", ".join(f"the {thing}" for thing in things)
    if len(things) == 1:
        question, answer_start = f"What is the magic number of {what}?", f"The magic number of {what} is"
    else:
        question, answer_start = f"What are the magic numbers of {what}?", f"The magic numbers of {what} are"
    return Prompt(body=body, question=question, answer_start=answer_start)
