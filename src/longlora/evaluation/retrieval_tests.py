"""Four tests of retrieval; each draws a question from a trial's seed and gives it to `Draft` to be filled up.

passkey   one number in a long text of nothing (Mohtashami & Jaggi 2023), in the original LongLoRA's words
needle    one or several facts in a text about other things (Kamradt 2023; RULER 2024)
topics    the first topic of a long conversation, as in LongChat's LongEval
recall    the value of a key at a controlled distance, by generation and by forced choice

Answers are judged as text. The original's passkey compares token ids, which calls right answers wrong wherever a
tokenizer does not put a space mark of its own before digits. Forced choice gives a graded signal where generation is
all or nothing: the likelihoods of the right value and of the values of the other pairs of the same prompt are compared.
"""

import random
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError
from longlora.evaluation.haystack import Haystack, Words, names, numbers
from longlora.evaluation.questions import (
    Draft,
    Question,
    RetrievalTest,
    TrialId,
    count_tokens,
    largest_fitting,
    uses_chat,
)

# The words of the original's passkey_retrivial.py, which took them from LongLLaMA's.
_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
_GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_ASPECTS = (
    "the history of|the economics of|the art of|the science of|the future of|the psychology of|the geography of|"
    "famous mistakes in|common myths about|the language of|the ethics of|the mathematics of|the music of|"
    "the tools of|the customs of|the dangers of|the beginnings of|the decline of|the laws of|the poetry of"
).split("|")
_SUBJECTS = (
    "lighthouses|beekeeping|mountain climbing|tea|railways|gardening|chess|glass making|sailing|astronomy|bread|"
    "cinema|volcanoes|bicycles|carpentry|deserts|migration|photography|printing|rainforests|silk|telegraphy|theatre|"
    "weaving|whales|winter sports|bridges|clocks|coins|coral reefs|dance|dreams|fashion|fishing|folk tales|fossils|"
    "glaciers|horses|insects|islands|kites|languages|magic tricks|maps|markets|mirrors|museums|olive trees|opera|"
    "paper|perfume|pottery|rivers|salt|schools|ships|spices|toys|universities|wheat"
).split("|")
_TOPICS = [f"{aspect} {subject}" for aspect in _ASPECTS for subject in _SUBJECTS]
_TURNS = (
    ("What should a beginner know about it?", "Start with what is easy to see, and ask the rest later."),
    ("Why does it matter to people today?", "It shapes daily life more than most people think."),
    ("Is there a book that you would recommend?", "There are several, and the older ones are still the clearest."),
    ("What do experts disagree about?", "Mostly about causes, and about how much of the evidence can be trusted."),
    ("How has it changed over time?", "Slowly at first, and then all at once when new methods became cheap."),
    ("Where in the world can one see it best?", "In many places, though the small ones are often the most rewarding."),
    ("What is the most surprising thing about it?", "That so much of it was found by chance and not by a plan."),
    ("Does it cost a lot to take part?", "Less than one would expect, if one is patient and borrows what one needs."),
    ("What is a mistake that many people make?", "They hurry, and so they miss what makes it worth the while."),
    ("Could you tell me a short story about it?", "A traveller once asked the same, and stayed for life."),
)


def passkey(*, form: Literal["measured", "original"] = "measured", chat: bool = True) -> RetrievalTest:
    """Hide a key at a depth of the filler, in a prompt sized in the model's own tokens.

    The `original` form makes the very prompts of the original's script: `int(3.75 * length // 1024 * 1024)` characters
    of filler, place and key drawn from the trial's number, the same at every length; the prompt's real length is
    whatever the tokenizer makes of it, and neither chat template nor seed matters.
    """

    def measured(tokenizer: PreTrainedTokenizerBase, trial: TrialId) -> Question:
        key = str(random.Random(trial.seed).randint(1, 49_999))
        return _passkey(tokenizer, key, trial.depth or 0.0, chat=chat).filled(trial.length, what="passkey")

    def original(tokenizer: PreTrainedTokenizerBase, trial: TrialId) -> Question:
        num_characters = int(3.75 * trial.length // 1024 * 1024)
        if num_characters == 0:
            raise ConfigError(f"the original's passkey needs a length of at least 274 tokens, not {trial.length}")
        rng = np.random.RandomState(trial.number)
        depth, key = rng.randint(0, num_characters) / num_characters, str(rng.randint(1, 50_000))
        return _passkey(tokenizer, key, depth, chat=False).finished(num_characters)

    if form == "original":
        return RetrievalTest(name="passkey", ask=original, settings={"form": form, "chat": False}, has_depths=False)
    return RetrievalTest(name="passkey", ask=measured, settings={"form": form, "chat": chat})


def _passkey(tokenizer: PreTrainedTokenizerBase, key: str, depth: float, *, chat: bool) -> Draft:
    fact = f"The pass key is {key}. Remember it. {key} is the pass key."

    def body(num_characters: int) -> str:
        filler = f"{_GARBAGE} " * (num_characters // (len(_GARBAGE) + 1) + 1)
        prefix = round(depth * num_characters)
        return "\n".join([_TASK, filler[:prefix], fact, filler[: num_characters - prefix]])

    return Draft(
        tokenizer=tokenizer,
        chat=chat,
        body=body,
        question="What is the pass key?",
        answer_start="The pass key is",
        fact=fact,
        expected=(key,),
        # Beyond the key itself: a space, a full stop, and what shows that the number has ended.
        max_new_tokens=count_tokens(tokenizer, f" {key}") + 8,
    )


def needle(*, num_needles: int = 1, haystack: Haystack | None = None, chat: bool = True) -> RetrievalTest:
    """Hide numbers of named things in a user's text or in made-up sentences.

    The first stands at the trial's depth, the others evenly from there to the end. All are asked for, in the order of
    the text, and the trial counts as right if the answer holds all of them.

    Raises:
        ConfigError: the number of needles is out of its range.
    """
    _check_range("needles", num_needles, 1, 64)
    filler = haystack or Haystack()

    def ask(tokenizer: PreTrainedTokenizerBase, trial: TrialId) -> Question:
        rng = random.Random(trial.seed)
        things, codes = names(rng, num_needles), numbers(rng, num_needles, 6)
        words = filler.stream(rng.randrange(2**32))
        facts = [f"The magic number of the {thing} is {code}" for thing, code in zip(things, codes, strict=True)]
        depth = trial.depth or 0.0
        depths = [depth + (1 - depth) * index / num_needles for index in range(num_needles)]
        what, s, are = ", ".join(f"the {thing}" for thing in things), "", "is"
        if num_needles > 1:
            s, are = "s", "are"
        return Draft(
            tokenizer=tokenizer,
            chat=chat,
            body=partial(_hide, facts, depths, words),
            question=f"What {are} the magic number{s} of {what}?",
            answer_start=f"The magic number{s} of {what} {are}",
            fact=f"{facts[0]}.",
            expected=tuple(codes),
            max_new_tokens=count_tokens(tokenizer, " ".join(f"{fact}," for fact in facts)) + 16,
        ).filled(trial.length, what="needle")

    settings = {"num_needles": num_needles, "haystack": filler.identity, "chat": chat}
    return RetrievalTest(name="needle", ask=ask, settings=settings)


def _hide(facts: list[str], depths: list[float], words: Words, num_words: int) -> str:
    parts, done = list[str](), 0
    for fact, depth in zip(facts, depths, strict=True):
        place = words.sentence_start(num_words, depth)
        parts += [*words.take(num_words)[done:place], f"{fact}."]
        done = place
    return " ".join([*parts, *words.take(num_words)[done:]])


def topics(*, num_topics: int | None = None, chat: bool = True) -> RetrievalTest:
    """Ask which topic of a generated conversation came first: it must be named, and before any other.

    LongEval's own conversations are a data set. Without a number of topics there is one for each 650 tokens of the
    length, and three at least: LongEval has 5 to 25 of them in 3,000 to 16,000 tokens.

    Raises:
        ConfigError: the number of topics is out of its range.
    """
    if num_topics is not None:
        _check_range("topics", num_topics, 2, len(_TOPICS))

    def ask(tokenizer: PreTrainedTokenizerBase, trial: TrialId) -> Question:
        rng = random.Random(trial.seed)
        chosen = rng.sample(_TOPICS, min(len(_TOPICS), num_topics or max(3, trial.length // 650)))
        order = rng.sample(_TURNS, len(_TURNS))
        # In a chat the template says who speaks.
        speaker, replier = ("", "") if uses_chat(tokenizer, chat) else ("USER: ", "ASSISTANT: ")
        return Draft(
            tokenizer=tokenizer,
            chat=chat,
            body=partial(_conversation, chosen, order),
            question=f"{speaker}What is the first topic that we discussed? Give only the name of the topic.",
            answer_start=f"{replier}The first topic that we discussed is",
            fact=_opening(chosen[0]),
            expected=(chosen[0],),
            distractors=tuple(chosen[1:]),
            max_new_tokens=max(count_tokens(tokenizer, f" {name}.") for name in chosen) + 8,
        ).filled(trial.length, what=f"a conversation about {len(chosen)} topics")

    settings = {"num_topics": num_topics, "chat": chat}
    return RetrievalTest(name="topics", ask=ask, settings=settings, has_depths=False)


def _opening(name: str) -> str:
    return f"USER: I would like to discuss {name}.\nASSISTANT: Gladly. What would you like to know about it?"


def _conversation(chosen: list[str], order: list[tuple[str, str]], num_turns: int) -> str:
    """Open every topic, and share `num_turns` further turns evenly among them."""
    lines = []
    for index, name in enumerate(chosen):
        lines.append(_opening(name))
        turns = range(num_turns * index // len(chosen), num_turns * (index + 1) // len(chosen))
        lines += [f"USER: {asked}\nASSISTANT: {told}" for asked, told in (order[turn % len(order)] for turn in turns)]
    return "\n".join(lines)


def recall(*, num_pairs: int = 8, haystack: Haystack | None = None, chat: bool = True) -> RetrievalTest:
    """Ask for the value of one of so many pairs, which stands `(1 - depth)` of the prompt before its end.

    Filler after the block of pairs is measured so that the asked pair begins at most that many tokens before the end;
    filler before it makes up the rest. At depth 0 the block opens the prompt. Which pair is asked for is drawn. Chance
    of the choice is one in `num_pairs`, whatever the model knows about numbers, because all values were drawn in the
    same way and have the same number of tokens.

    Raises:
        ConfigError: the number of pairs is out of its range.
    """
    _check_range("pairs", num_pairs, 2, 64)
    filler = haystack or Haystack()

    def ask(tokenizer: PreTrainedTokenizerBase, trial: TrialId) -> Question:
        rng = random.Random(trial.seed)
        keys, values = names(rng, num_pairs), _values(tokenizer, rng, num_pairs)
        asked = rng.randrange(num_pairs)
        key, value, others = keys[asked], values[asked], (*values[:asked], *values[asked + 1 :])
        pairs = [f"The code of the {key} is {value}." for key, value in zip(keys, values, strict=True)]
        before, after = (filler.stream(rng.randrange(2**32)) for _ in range(2))

        def body(words_before: int, words_after: int) -> str:
            parts = [" ".join(before.take(words_before)), "\n".join(pairs), " ".join(after.take(words_after))]
            return "\n".join(part for part in parts if part)

        draft = Draft(
            tokenizer=tokenizer,
            chat=chat,
            body=partial(body, 0),
            question=f"What is the code of the {key}?",
            answer_start=f"The code of the {key} is",
            fact=pairs[asked],
            expected=(value,),
            distractors=others,
            choices=(value, *others),
            max_new_tokens=count_tokens(tokenizer, f" {value}.") + 4,
        )
        budget = trial.length - draft.max_new_tokens
        words_after = largest_fitting(draft.size, budget, what=f"recall of {num_pairs} pairs")
        distance = max(round((1 - (trial.depth or 0.0)) * budget), draft.distance(0))
        if draft.distance(words_after) > distance:
            words_after = largest_fitting(draft.distance, distance, what="recall")
        return replace(draft, body=partial(body, words_after=words_after)).filled(trial.length, what="recall")

    settings = {"num_pairs": num_pairs, "haystack": filler.identity, "chat": chat}
    measures = {"generated": 0.0, "chosen": 1 / num_pairs}
    return RetrievalTest(name="recall", ask=ask, settings=settings, measures=measures)


def _values(tokenizer: PreTrainedTokenizerBase, rng: random.Random, count: int) -> list[str]:
    """Draw values of the same number of tokens, so that their likelihoods can be compared."""
    by_size: dict[int, list[str]] = {}
    # 9,000 values in at most a handful of sizes: a size with 64 of them is there long before the end.
    for value in numbers(rng, 9000, 4):
        alike = by_size.setdefault(count_tokens(tokenizer, f" {value}"), [])
        alike.append(value)
        if len(alike) == count:
            return alike
    raise ConfigError(f"the tokenizer writes fewer than {count} numbers of 4 digits with as many tokens each")


def _check_range(what: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise ConfigError(f"{what} must be {least} to {most}, not {number}")
