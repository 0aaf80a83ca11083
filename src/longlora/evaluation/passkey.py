"""Passkey retrieval (Mohtashami & Jaggi 2023): one number in a long text of nothing, in the original LongLoRA's words.

Two forms of the same prompt. `measured` cuts the filler so that prompt and answer are as many of the model's own tokens
as were asked for, and puts the key at a depth. `original` makes the very prompts of the original's script: filler in
characters by a rule of thumb for Llama 2, place and key drawn from the trial's number, the same at every length.
Both judge the answer as text; the original compares token ids, which calls right answers wrong wherever a tokenizer
does not put a space mark of its own before digits.
"""

import random
from functools import partial
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError
from longlora.evaluation.prompts import Prompt, count_tokens, encode, largest_fitting, render, tokens_from
from longlora.evaluation.trials import Question, RetrievalTest, TrialId

# The words of the original's passkey_retrivial.py, which took them from LongLLaMA's.
_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
_GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_ORIGINAL_CHARACTERS_PER_TOKEN = 3.75
# Beyond the key itself: a space, a full stop, and what shows that the number has ended.
_ROOM = 8

Form = Literal["measured", "original"]


def passkey(*, form: Form = "measured", chat: bool = True) -> RetrievalTest:
    """Return the test; its `original` form draws the depth and takes neither chat template nor seed."""
    if form == "original":
        settings = {"form": form, "chat": False}
        measures = {"generated": 0.0}
        return RetrievalTest(
            name="passkey", ask=original_question, settings=settings, measures=measures, has_depths=False
        )
    return RetrievalTest(
        name="passkey",
        ask=partial(measured_question, chat=chat),
        settings={"form": form, "chat": chat},
        measures={"generated": 0.0},
    )


def measured_question(tokenizer: PreTrainedTokenizerBase, trial: TrialId, *, chat: bool = True) -> Question:
    """Ask for a key at `trial.depth` of the filler, in a prompt sized in the model's own tokens.

    Raises:
        ConfigError: the length has no room for the bare prompt.
    """
    key = str(random.Random(trial.seed).randint(1, 49_999))
    max_new_tokens = count_tokens(tokenizer, f" {key}") + _ROOM

    def text(num_characters: int) -> str:
        prefix = round((trial.depth or 0.0) * num_characters)
        prompt = _prompt(key, _garbage(prefix), _garbage(num_characters - prefix))
        return render(tokenizer, prompt, chat=chat)

    num_characters = largest_fitting(
        lambda count: len(encode(tokenizer, text(count), chat=chat)), trial.length - max_new_tokens, what="passkey"
    )
    return _question(tokenizer, text(num_characters), key, max_new_tokens, chat=chat)


def original_question(tokenizer: PreTrainedTokenizerBase, trial: TrialId) -> Question:
    """Ask as the original's script does for its nominal length `trial.length` and its test number `trial.number`.

    The prompt's real length is whatever the tokenizer makes of `int(3.75 * length // 1024 * 1024)` characters.

    Raises:
        ConfigError: the length is so small that the rule leaves no filler.
    """
    num_characters = int(_ORIGINAL_CHARACTERS_PER_TOKEN * trial.length // 1024 * 1024)
    if num_characters == 0:
        raise ConfigError(f"the original's passkey needs a length of at least 274 tokens, not {trial.length}")
    rng = np.random.RandomState(trial.number)
    prefix = rng.randint(0, num_characters)
    key = str(rng.randint(1, 50_000))
    text = render(tokenizer, _prompt(key, _garbage(prefix), _garbage(num_characters - prefix)), chat=False)
    return _question(tokenizer, text, key, count_tokens(tokenizer, f" {key}") + _ROOM, chat=False)


def _prompt(key: str, prefix: str, suffix: str) -> Prompt:
    body = "\n".join([_TASK, prefix, _fact(key), suffix])
    return Prompt(body=body, question="What is the pass key?", answer_start="The pass key is")


def _fact(key: str) -> str:
    return f"The pass key is {key}. Remember it. {key} is the pass key."


def _garbage(num_characters: int) -> str:
    """Return the beginning of the endless filler; the original's ends after 449,999 characters."""
    return (f"{_GARBAGE} " * (num_characters // (len(_GARBAGE) + 1) + 1))[:num_characters]


def _question(tokenizer: PreTrainedTokenizerBase, text: str, key: str, max_new_tokens: int, *, chat: bool) -> Question:
    return Question(
        input_ids=encode(tokenizer, text, chat=chat),
        expected=(key,),
        max_new_tokens=max_new_tokens,
        distance=tokens_from(tokenizer, text, _fact(key), chat=chat),
    )
