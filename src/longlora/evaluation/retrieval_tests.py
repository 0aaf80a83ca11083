"""Seven retrieval tests; each derives a question from the trial's seed, and `QuestionDraft` fills up the prompt.

passkey      one number in repetitive filler (Mohtashami & Jaggi 2023), in the original LongLoRA's words
needle       one or several facts in unrelated text (Kamradt 2023; RULER 2024)
topics       the first topic of a long conversation, as in LongChat's LongEval
recall       the value of a key at a controlled distance, by generation and by forced choice
association  the person described, where question and fact share no word (Modarressi et al. 2025, NoLiMa; our own data)
tracking     the value of a variable assigned from other variables (RULER's variable tracking, asking for the value)
counting     the thing seen most often in the whole text (RULER's aggregation)

Answers are compared as text. The original's passkey compares token ids, which rejects right answers if the tokenizer
does not put a separate space token before digits. Forced choice compares the likelihoods of the right value and of the
prompt's other values, a graded signal where generation is all or nothing.
"""

import random
from dataclasses import replace
from functools import partial

import numpy as np
from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError
from longlora.evaluation.haystack import Haystack, Words, names, numbers
from longlora.evaluation.questions import (
    Question,
    QuestionDraft,
    RetrievalTest,
    TrialId,
    count_tokens,
    largest_fitting,
    uses_chat,
)
from longlora.evaluation.word_lists import ASSOCIATIONS, FIRST_NAMES, TOPICS, TURNS
from longlora.support.choices import PasskeyForm

# From the original's passkey_retrivial.py, which took them from LongLLaMA.
_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
_GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


def passkey(*, form: PasskeyForm = "measured", chat: bool = True) -> RetrievalTest:
    """Test retrieval of a key at a given depth of filler, in a prompt measured in the model's own tokens.

    The `original` form builds exactly the prompts of the original's script: `int(3.75 * length // 1024 * 1024)`
    characters of filler, with place and key drawn from the trial number, the same at every length. The prompt's actual
    length depends on the tokenizer; the chat template and the seed have no effect.
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


def _passkey(tokenizer: PreTrainedTokenizerBase, key: str, depth: float, *, chat: bool) -> QuestionDraft:
    fact = f"The pass key is {key}. Remember it. {key} is the pass key."

    def body(num_characters: int) -> str:
        filler = f"{_GARBAGE} " * (num_characters // (len(_GARBAGE) + 1) + 1)
        prefix = round(depth * num_characters)
        return "\n".join([_TASK, filler[:prefix], fact, filler[: num_characters - prefix]])

    return QuestionDraft(
        tokenizer=tokenizer,
        chat=chat,
        body=body,
        question="What is the pass key?",
        answer_start="The pass key is",
        fact=fact,
        expected=(key,),
        # Room beyond the key: a space, a full stop, and enough text to show that the number has ended.
        max_new_tokens=count_tokens(tokenizer, f" {key}") + 8,
    )


def needle(*, num_needles: int = 1, haystack: Haystack | None = None, chat: bool = True) -> RetrievalTest:
    """Test retrieval of the numbers of named things, hidden in a user's text or in generated sentences.

    The first is at the trial's depth, the others are spread evenly from there to the end. The question asks for all of
    them in the order of the text, and the trial counts as correct if the answer contains all of them.

    Raises:
        ConfigError: the number of needles is out of range.
    """
    _check_range("needles", num_needles, 1, 64)
    filler = haystack or Haystack()

    def ask(tokenizer: PreTrainedTokenizerBase, trial: TrialId) -> Question:
        rng = random.Random(trial.seed)
        things, codes = names(rng, num_needles), numbers(rng, num_needles, 6)
        words = filler.stream(rng.randrange(2**32))
        facts = [f"The magic number of the {thing} is {code}" for thing, code in zip(things, codes, strict=True)]
        depths = _evenly(trial.depth, num_needles)
        what, s, are = ", ".join(f"the {thing}" for thing in things), "", "is"
        if num_needles > 1:
            s, are = "s", "are"
        return QuestionDraft(
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
    """Ask for the first topic of a generated conversation; the answer must name it before any other topic.

    LongEval's own conversations are a fixed data set. The default is one topic per 650 tokens of the length, at least
    three; LongEval has 5 to 25 topics in 3,000 to 16,000 tokens.

    Raises:
        ConfigError: the number of topics is out of range.
    """
    if num_topics is not None:
        _check_range("topics", num_topics, 2, len(TOPICS))

    def ask(tokenizer: PreTrainedTokenizerBase, trial: TrialId) -> Question:
        rng = random.Random(trial.seed)
        chosen = rng.sample(TOPICS, min(len(TOPICS), num_topics or max(3, trial.length // 650)))
        order = rng.sample(TURNS, len(TURNS))
        # In a chat, the template marks the speakers.
        speaker, replier = ("", "") if uses_chat(tokenizer, chat) else ("USER: ", "ASSISTANT: ")
        return QuestionDraft(
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
    """Test recall of the value of one of `num_pairs` pairs, placed `(1 - depth)` of the prompt before its end.

    Filler after the block of pairs is measured so that the requested pair begins at most that many tokens before the
    end; filler before it makes up the rest. At depth 0 the block opens the prompt. The requested pair is drawn at
    random. The chance level of the choice is one in `num_pairs`, whatever the model knows about numbers, because all
    values are drawn in the same way and have the same number of tokens.

    Raises:
        ConfigError: the number of pairs is out of range.
    """
    _check_range("pairs", num_pairs, 2, 64)
    filler = haystack or Haystack()

    def ask(tokenizer: PreTrainedTokenizerBase, trial: TrialId) -> Question:
        rng = random.Random(trial.seed)
        keys, values = names(rng, num_pairs), _values(tokenizer, rng, num_pairs)
        asked = rng.randrange(num_pairs)
        key, value = keys[asked], values[asked]
        pairs = [f"The code of the {key} is {value}." for key, value in zip(keys, values, strict=True)]
        before, after = (filler.stream(rng.randrange(2**32)) for _ in range(2))

        def body(words_before: int, words_after: int) -> str:
            parts = [" ".join(before.take(words_before)), "\n".join(pairs), " ".join(after.take(words_after))]
            return "\n".join(part for part in parts if part)

        draft = QuestionDraft(
            tokenizer=tokenizer,
            chat=chat,
            body=partial(body, 0),
            question=f"What is the code of the {key}?",
            answer_start=f"The code of the {key} is",
            fact=pairs[asked],
            choices=(value, *values[:asked], *values[asked + 1 :]),
            max_new_tokens=count_tokens(tokenizer, f" {value}.") + 4,
        )
        budget = trial.length - draft.max_new_tokens
        words_after = largest_fitting(draft.size, budget, what=f"recall of {num_pairs} pairs")
        distance = max(round((1 - (trial.depth or 0.0)) * budget), draft.distance(0))
        if draft.distance(words_after) > distance:
            words_after = largest_fitting(draft.distance, distance, what="recall")
        return replace(draft, body=partial(body, words_after=words_after)).filled(trial.length, what="recall")

    settings = {"num_pairs": num_pairs, "haystack": filler.identity, "chat": chat}
    return RetrievalTest(name="recall", ask=ask, settings=settings, num_choices=num_pairs)


def association(*, num_people: int = 6, haystack: Haystack | None = None, chat: bool = True) -> RetrievalTest:
    """Ask for the person who fits a description that shares no word with the fact about that person.

    The fact in question is at the trial's depth, after a random number of the facts about other people. The answer can
    therefore not be guessed as the only, the first or the last name in the text.

    Raises:
        ConfigError: the number of people is out of range.
    """
    _check_range("people", num_people, 2, len(ASSOCIATIONS))
    filler = haystack or Haystack()

    def ask(tokenizer: PreTrainedTokenizerBase, trial: TrialId) -> Question:
        rng = random.Random(trial.seed)
        people = _alike(tokenizer, rng.sample(FIRST_NAMES, len(FIRST_NAMES)), num_people)
        chosen = rng.sample(ASSOCIATIONS, num_people)
        asked, *others = (f"{name} {fact}" for name, (fact, _) in zip(people, chosen, strict=True))
        before, depth = rng.randrange(num_people), trial.depth or 0.0
        depths = [depth * rng.random() for _ in range(before)] + [depth]
        depths += [depth + (1 - depth) * rng.random() for _ in others[before:]]
        facts = [*others[:before], asked, *others[before:]]
        return QuestionDraft(
            tokenizer=tokenizer,
            chat=chat,
            body=partial(_hide, facts, sorted(depths), filler.stream(rng.randrange(2**32))),
            question=f"Which of the people named in this text {chosen[0][1]}? Give only the name.",
            answer_start="The name is",
            fact=f"{asked}.",
            choices=tuple(people),
            max_new_tokens=max(count_tokens(tokenizer, f" {name}.") for name in people) + 4,
        ).filled(trial.length, what="association")

    settings = {"num_people": num_people, "haystack": filler.identity, "chat": chat}
    return RetrievalTest(name="association", ask=ask, settings=settings, num_choices=num_people)


def tracking(
    *, num_hops: int = 2, num_chains: int = 4, haystack: Haystack | None = None, chat: bool = True
) -> RetrievalTest:
    """Ask for the value of a variable at the end of a chain of `num_hops` assignments.

    RULER asks for all variables with a given value. Asking for the value has a single answer, and the values of the
    other chains are wrong answers of the same kind. All chains begin at the trial's depth; the later assignments are
    spread evenly from there to the end. The order of the chains is drawn for each hop.

    Raises:
        ConfigError: a number is out of range.
    """
    _check_range("hops", num_hops, 1, 16)
    _check_range("chains", num_chains, 2, 16)
    filler = haystack or Haystack()

    def ask(tokenizer: PreTrainedTokenizerBase, trial: TrialId) -> Question:
        rng = random.Random(trial.seed)
        letters = [f"{a}{b}{c}" for a in "BDFGHJKLMN" for b in "AEIOU" for c in "PRSTVWXZ"]
        drawn, values = rng.sample(letters, (num_hops + 1) * num_chains), _values(tokenizer, rng, num_chains)
        chains = [drawn[first::num_chains] for first in range(num_chains)]
        lines = list[str]()
        for hop in range(num_hops + 1):
            sources = values if hop == 0 else [f"VAR {chain[hop - 1]}" for chain in chains]
            order = rng.sample(range(num_chains), num_chains)
            lines += [f"VAR {chains[number][hop]} = {sources[number]}" for number in order]
        asked, depth = chains[0][-1], trial.depth or 0.0
        depths = [depth] * num_chains + _evenly(depth, num_hops * num_chains + 1)[1:]
        return QuestionDraft(
            tokenizer=tokenizer,
            chat=chat,
            body=partial(_hide, lines, depths, filler.stream(rng.randrange(2**32))),
            question=(
                "In the text above variables are set to numbers or to other variables. "
                f"Follow them: which number is the value of VAR {asked}? Give only the number."
            ),
            answer_start=f"The value of VAR {asked} is the number",
            fact=f"VAR {chains[0][0]} = {values[0]}.",
            choices=tuple(values),
            max_new_tokens=count_tokens(tokenizer, f" {values[0]}.") + 4,
        ).filled(trial.length, what=f"tracking of {num_chains} chains of {num_hops} hops")

    settings = {"num_hops": num_hops, "num_chains": num_chains, "haystack": filler.identity, "chat": chat}
    return RetrievalTest(name="tracking", ask=ask, settings=settings, num_choices=num_chains)


def counting(*, haystack: Haystack | None = None, chat: bool = True) -> RetrievalTest:
    """Ask which of five things was reported most often in the whole text.

    The right one is reported four times, twice at the beginning; another twice, both in the second half, where it is
    the most frequent; the others once or twice. A model that reads only the end is wrong: `distance` counts from the
    second report of the right one, without which it would tie with the other.
    """
    filler = haystack or Haystack()
    num_things = 5

    def ask(tokenizer: PreTrainedTokenizerBase, trial: TrialId) -> Question:
        rng = random.Random(trial.seed)
        things = _alike(tokenizer, names(rng, 60), num_things)
        most, often, *rest = things
        parts = [most, most, rest[0]], [most, most, *rest[1:]], [often, often, *(t for t in rest if rng.randrange(2))]
        seen = [thing for part in parts for thing in rng.sample(part, len(part))]
        reports = [f"Report {number}: the {thing} was seen" for number, thing in enumerate(seen, start=1)]
        depths = [0.0, 0.0, *_evenly(0.0, len(reports) - 2)]
        return QuestionDraft(
            tokenizer=tokenizer,
            chat=chat,
            body=partial(_hide, reports, depths, filler.stream(rng.randrange(2**32))),
            question="Count the reports in the text above: which one was seen most often?",
            answer_start="The one that was seen most often is the",
            fact=f"{reports[seen.index(most, seen.index(most) + 1)]}.",
            choices=tuple(things),
            max_new_tokens=count_tokens(tokenizer, f" {most}.") + 4,
        ).filled(trial.length, what="counting")

    settings = {"num_things": num_things, "haystack": filler.identity, "chat": chat}
    return RetrievalTest(name="counting", ask=ask, settings=settings, num_choices=num_things, has_depths=False)


def _evenly(depth: float | None, count: int) -> list[float]:
    """Return the depths of `count` facts, the first at `depth` and the others spread evenly from there to the end."""
    first = depth or 0.0
    return [first + (1 - first) * index / count for index in range(count)]


def _values(tokenizer: PreTrainedTokenizerBase, rng: random.Random, count: int) -> list[str]:
    # The 9,000 values have only a few different token counts, so one count reaches 64 values long before the end.
    return _alike(tokenizer, numbers(rng, 9000, 4), count, what="numbers of 4 digits")


def _alike(tokenizer: PreTrainedTokenizerBase, words: list[str], count: int, *, what: str = "names") -> list[str]:
    """Return the first `count` words that have the same number of tokens, so that their likelihoods are comparable."""
    by_size: dict[int, list[str]] = {}
    for word in words:
        alike = by_size.setdefault(count_tokens(tokenizer, f" {word}"), [])
        alike.append(word)
        if len(alike) == count:
            return alike
    raise ConfigError(f"the tokenizer encodes fewer than {count} {what} as the same number of tokens")


def _check_range(what: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        raise ConfigError(f"{what} must be {least} to {most}, not {number}")
