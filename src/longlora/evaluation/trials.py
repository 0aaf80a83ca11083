"""The one shape of every retrieval test: a trial is named, asked, answered and scored."""

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from transformers import PreTrainedTokenizerBase

from longlora.errors import ConfigError, DataError
from longlora.support.files import write_atomically


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


@dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """A trial with its answer and its scores: one line of the log."""

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

    @property
    def identity(self) -> TrialId:
        """The name of the trial."""
        return TrialId(self.test, self.length, self.depth, self.number, self.seed)

    def to_line(self) -> str:
        """Write it as a line of JSON; a score that is no finite number is refused."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False) + "\n"


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


def gather(folder: Path, settings: Mapping[str, Any], order: Iterable[TrialId] = ()) -> dict[TrialId, FinishedTrial]:
    """Put the files of all processes into one, in the given order first, and return every finished trial.

    Raises:
        ConfigError: the folder holds an evaluation with other settings.
        DataError: a file was changed by something else and cannot be read.
    """
    parts = sorted(folder.glob(_PARTS))
    order = list(order)
    found: dict[TrialId, FinishedTrial] = {}
    for path in (folder / LOG_FILE, *parts):
        found |= {trial.identity: trial for trial in _read(path, settings)}
    if parts:
        place = {identity: number for number, identity in enumerate(order)}
        sorted_trials = sorted(found.values(), key=lambda trial: place.get(trial.identity, len(place)))
        text = _header(settings) + "".join(trial.to_line() for trial in sorted_trials)
        write_atomically(folder / LOG_FILE, text)
        for path in parts:
            path.unlink()
    return found


class TrialLog:
    """Appends finished trials to this process's file."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, process: int = 0, num_processes: int = 1) -> None:
        name = LOG_FILE if num_processes == 1 else f"trials.part-{process}-of-{num_processes}.jsonl"
        self.path = folder / name
        if _mend(self.path) == 0:
            self.path.write_text(_header(settings), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, trial: FinishedTrial) -> None:
        """Write a trial's line and hand it to the operating system at once."""
        self._file.write(trial.to_line())
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _header(settings: Mapping[str, Any]) -> str:
    return json.dumps({"settings": settings}, ensure_ascii=False) + "\n"


def _mend(path: Path) -> int:
    """Cut off a last line that an interruption tore, and return the size of what is left."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    return whole


def _read(path: Path, settings: Mapping[str, Any]) -> list[FinishedTrial]:
    if _mend(path) == 0:
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    values = [_parse(path, number, line) for number, line in enumerate(lines, start=1)]
    try:
        _check_same(path, values[0]["settings"], json.loads(json.dumps(settings)))
        return [FinishedTrial(**value) for value in values[1:]]
    except (TypeError, KeyError) as error:
        raise DataError(f"{path} is no log of trials ({error}); delete it or choose another folder") from error


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{path} cannot be read in line {number} ({error}); delete that line or choose another folder"
        ) from error


def _check_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if differing:
        changes = ", ".join(f"{name} {there.get(name)!r} there and {here.get(name)!r} now" for name in differing)
        raise ConfigError(
            f"{path} holds trials of another evaluation ({changes}): choose another folder, or delete that one"
        )
