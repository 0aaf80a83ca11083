"""Synthetic documents that teach retrieval; the tiny base model was pretrained on them.

Facts (the value of a named thing) are placed among filler; questions about them follow. There are four kinds:
sentences, Python tables, a repeated passage with one fact in it, and plain copies. Names are made up or words of the
given texts, and values are random digits, so only the document itself has the answers. Some of the wording is that of
the tests in `longlora.evaluation.retrieval_tests`; their names, fillers and values are not used.
"""

import itertools
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from longlora.evaluation import haystack, retrieval_tests
from longlora.support.files import write_atomically
from longlora.support.journal import json_line

_CHARACTERS_PER_TOKEN = 2.4  # for such text, with the tiny model's tokenizer
_MOST_DIGITS = 48  # of padding per document
_ROOM = 1.05  # requested over wanted length, because most documents come out too short

_PROPERTIES = "code|magic number|number|price|size|key|address|weight|port|index|age|height".split("|")
_SECRETS = "pass key|pass key|secret number|access code|door code|password".split("|")
_SYLLABLES = (
    "ba be bo cal cor da del do fa fen gar ha hi jo ka lan lim ma mer mo na nor pel ra ri sa sel ta tor vi wen".split()
)
_STATES = "open closed large small old new empty full blue red green warm cold quick slow wide deep near far".split()


@dataclass
class AnsweredText:
    """Text, and the parts of it that are answers, which follow from the text before them."""

    text: str = ""
    answers: list[tuple[int, int]] = field(default_factory=list)
    """Character spans, [begin, end)."""

    def add(self, text: str) -> None:
        """Append text."""
        self.text += text

    def answer(self, text: str) -> None:
        """Append text that follows from what precedes it."""
        self.answers.append((len(self.text), len(self.text) + len(text)))
        self.text += text


def vocabulary(texts: list[str]) -> list[str]:
    """List the common lower-case words of the texts, without those in longlora's retrieval tests."""
    tested = " ".join(
        str(value)
        for module in (haystack, retrieval_tests)
        for name, value in vars(module).items()
        if name.strip("_").isupper() and isinstance(value, list | tuple | str)
    )
    counts = Counter(word for text in texts for word in re.findall(r"\b[a-z]{3,9}\b", text))
    for word in re.findall(r"[a-z]+", tested.lower()):
        counts.pop(word, None)
    return [word for word, count in counts.most_common() if count >= 10]


def write_recall_documents(
    path: Path, files: list[Path], tokenizer: PreTrainedTokenizerBase, num_tokens: int, *, count: int
) -> Path:
    """Write documents as JSONL, each of exactly `num_tokens` tokens with BOS and EOS; an existing file is kept.

    Words come from the files. Most documents begin with their facts and end with the questions. If they are packed
    before anything else, each is one row of a context of `num_tokens`.
    """
    if not path.exists():
        words = vocabulary([file.read_text(encoding="utf-8", errors="replace") for file in files])
        source = RecallText(words, seed=1, far=0.6)
        texts = (fitting for _ in itertools.count() if (fitting := source.fitting(tokenizer, num_tokens)))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json_line({"text": text}) for text in itertools.islice(texts, count)))
    return path


class RecallText:
    """A source of random documents."""

    def __init__(self, words: list[str], seed: int, *, far: float = 0.0) -> None:
        """Make the share `far` of the sentence documents far: all facts at the start, all questions at the end."""
        self._words = words
        self._rng = random.Random(seed)
        self._far = far

    def document(self, num_tokens: int) -> AnsweredText:
        """Draw a document of about `num_tokens` tokens."""
        kinds = [self._sentences, self._table, self._passage, self._copy]
        [kind] = self._rng.choices(kinds, weights=[12, 3, 4, 1])
        return kind(int(num_tokens * _CHARACTERS_PER_TOKEN))

    def fitting(self, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> str | None:
        """Draw a document and pad it to exactly `num_tokens` tokens with BOS and EOS; None if it is too far off."""
        text = self.document(round(_ROOM * num_tokens)).text
        missing = num_tokens - 1 - len(tokenizer(text, verbose=False)["input_ids"])
        if not 2 <= missing <= _MOST_DIGITS:
            return None
        return f"{self._number(missing - 1)}\n{text}"  # each digit is one token, and so is the line end

    def _sentences(self, size: int) -> AnsweredText:
        rng, out = self._rng, AnsweredText()
        is_far = bool(self._far) and rng.random() < self._far
        most_facts = max(1, min(12, size // 50))
        num_facts = rng.randint(most_facts // 2 if is_far else 1, most_facts)
        label = rng.choice(_PROPERTIES)
        digits = rng.randint(2, 6)
        facts = {name: self._number(digits) for name in self._names(num_facts)}
        num_questions = num_facts if is_far else rng.randint(1, min(max(4, size // 300), num_facts + 1))
        room = size - num_facts * 36 - num_questions * 75
        separator = rng.choice([" ", "\n"])
        lines = [f"The {label} of the {name} is {value}." for name, value in facts.items()]
        filler = self._filler(max(0, room))
        if is_far or rng.random() < 0.5:  # facts in one block, or scattered
            place = 0 if is_far else rng.randint(0, len(filler))
            parts = [" ".join(filler[:place]), separator.join(lines), " ".join(filler[place:])]
            out.add("\n".join(part for part in parts if part))
        else:
            for line in lines:
                filler.insert(rng.randint(0, len(filler)), line)
            out.add(separator.join(filler))
        asked = rng.sample(list(facts), num_facts) if is_far else rng.choices(list(facts), k=num_questions)
        for name in asked:
            out.add(f"\nWhat is the {label} of the {name}? The {label} of the {name} is")
            out.answer(f" {facts[name]}.")
        return out

    def _table(self, size: int) -> AnsweredText:
        rng, out = self._rng, AnsweredText()
        table = rng.choice(self._words)
        num_facts = rng.randint(2, max(2, min(12, size // 50)))
        words = rng.random() < 0.3
        facts = {
            "_".join(name.split()): repr(rng.choice(self._words)) if words else self._number(rng.randint(1, 5))
            for name in self._names(num_facts)
        }
        out.add(f"{table} = {{\n" + "".join(f'    "{name}": {value},\n' for name, value in facts.items()) + "}\n")
        questions = rng.choices(list(facts), k=max(1, (size - len(out.text)) // 40))
        for name in questions[:6]:
            out.add(f'assert {table}["{name}"] ==')
            out.answer(f" {facts[name]}\n")
        return out

    def _passage(self, size: int) -> AnsweredText:
        rng, out = self._rng, AnsweredText()
        passage = " ".join(f"The {rng.choice(self._words)} is {rng.choice(_STATES)}." for _ in range(rng.randint(2, 5)))
        secret, value = rng.choice(_SECRETS), self._number(rng.randint(1, 5))
        room = max(0, size - 200)
        filler = f"{passage} " * (room // len(passage) + 1)
        place = rng.randint(0, room)
        out.add(f"{filler[:place]}\nThe {secret} is {value}. Remember it.")
        out.answer(f" {value}")
        out.add(f" is the {secret}.\n{filler[: room - place]}\nWhat is the {secret}? The {secret} is")
        out.answer(f" {value}.")
        return out

    def _copy(self, size: int) -> AnsweredText:
        rng, out = self._rng, AnsweredText()
        length = max(12, size // 2)
        if rng.random() < 0.3:
            text = ", ".join(self._number(rng.randint(1, 6)) for _ in range(length // 6))
        else:
            text = " ".join(rng.choices(self._words, k=length // 7 + 1))
        out.add(f"{text}\n{text[:8]}")
        out.answer(text[8:])
        return out

    def _names(self, count: int) -> list[str]:
        num_words = self._rng.choice([1, 2, 2, 2])
        names = set[str]()
        while len(names) < count:
            names.add(" ".join(self._word() for _ in range(num_words)))
        return self._rng.sample(sorted(names), count)

    def _word(self) -> str:
        """Draw a word, or make one up, so names of several tokens must be distinguished too."""
        if self._rng.random() < 0.6:
            return self._rng.choice(self._words)
        return "".join(self._rng.choices(_SYLLABLES, k=self._rng.randint(2, 3)))

    def _number(self, digits: int) -> str:
        return str(self._rng.randrange(10 ** (digits - 1), 10**digits))

    def _filler(self, size: int) -> list[str]:
        sentences = list[str]()
        while size > 0:
            words = self._rng.choices(self._words, k=self._rng.randint(4, 9))
            sentences.append(f"{' '.join(words).capitalize()}.")
            size -= len(sentences[-1]) + 1
        return sentences
