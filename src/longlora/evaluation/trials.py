"""The one shape of every retrieval test: a trial is named, asked, answered and scored."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError, DataError
from longlora.support.files import write_atomically
from longlora.support.journal import Journal, json_line, read_journal


class TrialId(NamedTuple):
    """What names a trial, and with the test's settings decides every token of it."""

    test: str
    length: int
    """Tokens of prompt and answer together."""

    depth: float | None
    """Share of the filler that stands before the fact, 0 to 1; None if the test draws or fixes the place itself."""

    number: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt in tokens, and what a right answer holds."""

    input_ids: Sequence[int]
    expected: tuple[str, ...]
    """Words that the answer must hold, all of them."""

    max_new_tokens: int
    distance: int
    """Tokens from the beginning of the fact (of the farthest, if there are several) to the end of the prompt."""

    distractors: tuple[str, ...] = ()
    """Wrong answers that stand in the prompt: one of them before the right one spoils the answer."""

    choices: tuple[tuple[int, ...], ...] = ()
    """Continuations to compare by likelihood, the right one first; none without forced choice."""

    choice_context: int = 0
    """Tokens of `input_ids` that all continuations go on from."""


Ask = Callable[[PreTrainedTokenizerBase, TrialId], Question]


@dataclass(frozen=True, kw_only=True)
class RetrievalTest:
    """A test: how its trials are made, and what else but their identity decides them."""

    name: str
    ask: Ask
    settings: dict[str, Any]
    measures: dict[str, float]
    """The scores between 0 and 1 that are reported, each with its chance level; the first gives the verdict."""

    has_depths: bool = True


DEFAULT_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
DEFAULT_TRIALS = 10


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Which questions of a test are asked, and what counts as reading."""

    lengths: Sequence[int] | None = None
    """Tokens of prompt and answer; None for parts of the model's context."""

    depths: Sequence[float] = DEFAULT_DEPTHS
    num_trials: int = DEFAULT_TRIALS
    """At each length and depth."""

    seed: int = 0
    bar: float = 0.9
    """Share of right answers that counts as reading."""

    beyond: bool = False
    """Read more tokens than the model has positions."""


@dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """A trial with its answer and its scores: one line of `trials.jsonl`."""

    test: str
    length: int
    depth: float | None
    number: int
    seed: int
    num_tokens: int
    """Of the prompt."""

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
    return [
        TrialId(test, length, depth, number, _trial_seed(seed, test, length, depth, number))
        for length in lengths
        for depth in depths
        for number in range(num_trials)
    ]


def _trial_seed(*name: object) -> int:
    return random.Random(" ".join(map(str, name))).randrange(2**32)


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


LOG_FILE = "trials.jsonl"
_PARTS = "trials.part-*.jsonl"


@contextmanager
def open_log(
    folder: Path, settings: Mapping[str, Any], *, process: int = 0, num_processes: int = 1
) -> Iterator[Journal]:
    """Open the journal of finished trials; of several processes each has a file of its own until they are gathered.

    Raises:
        ConfigError: it was begun with other settings, or another process has it open.
        DataError: it cannot be read.
    """
    name = LOG_FILE if num_processes == 1 else f"trials.part-{process}-of-{num_processes}.jsonl"
    journal = Journal(folder / name, settings)
    try:
        yield journal
    finally:
        journal.close()
        (folder / f"{name}.lock").unlink(missing_ok=True)


def gather(folder: Path, settings: Mapping[str, Any], order: Iterable[TrialId] = ()) -> dict[TrialId, FinishedTrial]:
    """Put the files of all processes into one, in the given order first, and return every finished trial.

    Raises:
        ConfigError: the folder holds an evaluation with other settings.
        DataError: a file was changed by something else and cannot be read.
    """
    parts = sorted(folder.glob(_PARTS))
    trials = [
        trial
        for path in (folder / LOG_FILE, *parts)
        for trial in read_journal(path, settings, lambda line: FinishedTrial(**line))
    ]
    found = {trial.identity: trial for trial in trials}
    if parts:
        place = {identity: number for number, identity in enumerate(order)}
        lines = sorted(found.values(), key=lambda trial: place.get(trial.identity, len(place)))
        text = json_line({"settings": settings}) + "".join(json_line(asdict(trial)) for trial in lines)
        write_atomically(folder / LOG_FILE, text)
        for path in parts:
            path.unlink()
    return found
