"""Topic retrieval as in LongChat's LongEval: a long conversation about many topics; which came first?

LongEval's own conversations are a data set; these are generated in their form. Its 3,000 to 16,000 tokens for 5 to 25
topics set the number of topics here too. The answer is judged as text: the first topic must be named, and before any
other.
"""

import random
from functools import partial

from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError
from longlora.evaluation.prompts import Prompt, count_tokens, encode, largest_fitting, render, tokens_from, uses_chat
from longlora.evaluation.trials import Question, RetrievalTest, TrialId

_TOKENS_PER_TOPIC = 650
FEWEST_TOPICS = 3
_ROOM = 8

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
)  # fmt: skip


def topics(*, num_topics: int | None = None, chat: bool = True) -> RetrievalTest:
    """Return the test; without a number of topics, one for each 650 tokens of the length, and three at least.

    Raises:
        ConfigError: the number of topics is out of its range.
    """
    most = len(_ASPECTS) * len(_SUBJECTS)
    if num_topics is not None and not 2 <= num_topics <= most:
        raise ConfigError(f"topics must be 2 to {most}, not {num_topics}")
    return RetrievalTest(
        name="topics",
        ask=partial(topics_question, num_topics=num_topics, chat=chat),
        settings={"num_topics": num_topics, "chat": chat},
        measures={"generated": 0.0},
        has_depths=False,
    )


def topics_question(
    tokenizer: PreTrainedTokenizerBase, trial: TrialId, *, num_topics: int | None = None, chat: bool = True
) -> Question:
    """Ask which topic was discussed first in a conversation of `trial.length` tokens.

    Raises:
        ConfigError: the length has no room for the topics.
    """
    rng = random.Random(trial.seed)
    every = [f"{aspect} {subject}" for aspect in _ASPECTS for subject in _SUBJECTS]
    names = rng.sample(every, min(len(every), num_topics or max(FEWEST_TOPICS, trial.length // _TOKENS_PER_TOPIC)))
    order = rng.sample(_TURNS, len(_TURNS))
    # In a chat the template says who speaks.
    speaker, replier = ("", "") if uses_chat(tokenizer, chat) else ("USER: ", "ASSISTANT: ")

    def text(num_turns: int) -> str:
        prompt = Prompt(
            body=_conversation(names, order, num_turns),
            question=f"{speaker}What is the first topic that we discussed? Give only the name of the topic.",
            answer_start=f"{replier}The first topic that we discussed is",
        )
        return render(tokenizer, prompt, chat=chat)

    max_new_tokens = max(count_tokens(tokenizer, f" {name}.") for name in names) + _ROOM
    num_turns = largest_fitting(
        lambda count: len(encode(tokenizer, text(count), chat=chat)),
        trial.length - max_new_tokens,
        what=f"a conversation about {len(names)} topics",
    )
    return Question(
        input_ids=encode(tokenizer, text(num_turns), chat=chat),
        expected=(names[0],),
        distractors=tuple(names[1:]),
        max_new_tokens=max_new_tokens,
        distance=tokens_from(tokenizer, text(num_turns), _opening(names[0]), chat=chat),
    )


def _opening(name: str) -> str:
    return f"USER: I would like to discuss {name}.\nASSISTANT: Gladly. What would you like to know about it?"


def _conversation(names: list[str], order: list[tuple[str, str]], num_turns: int) -> str:
    """Open every topic, and share `num_turns` further turns evenly among them."""
    lines = []
    for index, name in enumerate(names):
        lines.append(_opening(name))
        turns = range(num_turns * index // len(names), num_turns * (index + 1) // len(names))
        lines += [f"USER: {asked}\nASSISTANT: {told}" for asked, told in (order[turn % len(order)] for turn in turns)]
    return "\n".join(lines)
