"""Every file that an evaluation writes has one schema, here: measurements write it, `longlora report` reads it.

result.json         `Retrieval`: passkey, needle, topics, recall
perplexity.json     `PerplexityByLength`
positions.json      `Positions`: loss by position
short_context.json  `ShortContext`: a model and its base, paired, at the base's own context
harness.json        `Harness`: tasks of lm-evaluation-harness
suite.json          `SuiteRecord`: what a suite did and left out
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, computed_field, model_validator

from longlora.errors import ConfigError, DataError, first_line
from longlora.support.files import write_atomically

R = TypeVar("R", bound="Result")
# JSON has no NaN and no infinity: both are written as null, which comes back as NaN.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return json.loads(self.model_dump_json())


class Result(_Schema):
    """What all result files say."""

    FILE: ClassVar[str]

    model: str
    weights: str | None = None  # digest, as `model_identity` gives it
    context: int | None = None  # tokens that the model says it reads
    settings: dict[str, Any] = Field(default_factory=dict)  # what decides the numbers
    provenance: dict[str, Any] = Field(default_factory=dict)
    path: Path = Field(default=Path(), exclude=True)  # where it was read from

    def write(self, folder: str | Path) -> None:
        """Write the file into a folder, whole or not at all."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(folder) / self.FILE, self.model_dump_json(indent=2) + "\n")


class Share(_Schema):
    """A share of right answers with Wilson's 95 % interval (`longlora.evaluation.shares.wilson`)."""

    share: float
    low: float
    high: float
    num_trials: int

    def __str__(self) -> str:
        return f"{self.share:.0%} of {self.num_trials} (95 % interval {self.low:.0%} to {self.high:.0%})"


class RetrievalRow(_Schema):
    """All trials of one length."""

    length: int
    mean_tokens: float  # of the prompts
    mean_distance: float  # tokens from the fact to the end of the prompt
    shares: dict[str, Share]  # by measure: `generated`, and `chosen` where there is a forced choice
    by_depth: dict[str, dict[str, Share]]  # the same; one entry `drawn` where the test draws or fixes the place
    means: dict[str, float]  # of the graded scores: `found`, and of a forced choice `rank` and `margin` (nats)


class Retrieval(Result):
    """A retrieval test's outcome."""

    FILE = "result.json"

    test: str
    bar: float
    effective_length: dict[str, int | None]  # by measure: the longest with `bar` there and at every shorter one
    verdict: str
    chance: dict[str, float]
    lengths: list[RetrievalRow]

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_settings(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(settings := values.get("settings"), dict):
            return values
        return {name: settings[name] for name in ("model", "weights") if name in settings} | values

    @property
    def title(self) -> str:
        """Name of the test, with what makes it harder or other than its usual form."""
        if self.test == "needle" and self.settings.get("num_needles", 1) > 1:
            return f"{self.test}, {self.settings['num_needles']} facts"
        if self.test == "recall":
            return f"{self.test} of {self.settings['num_pairs']}"
        return f"{self.test}, original form" if self.settings.get("form") == "original" else self.test

    @property
    def reached(self) -> int | None:
        """Up to how many tokens answers were generated right."""
        return self.effective_length["generated"]


class Perplexity(_Schema):
    """`exp(loss)`, the loss a mean over scored tokens of equal weight.

    `standard_error` is that of `loss` over windows, weighted by their tokens (ratio estimator): with S_i nats on n_i
    tokens in window i of k, `sqrt(sum((S_i - loss * n_i)**2) * k / (k - 1)) / sum(n_i)`. Windows are taken as
    independent: it is somewhat too small for neighbours, and far too small where windows score the same tokens
    (`score="all"`). NaN for one window.
    """

    perplexity: Number
    loss: Number  # nats per token
    num_tokens: int  # scored; twice if in two windows
    num_windows: int
    standard_error: Number  # nats per token


class PerplexityByLength(Result):
    """Perplexity of one model by context length in tokens."""

    FILE = "perplexity.json"

    protocol: str
    data: str  # the texts in a few words
    perplexity: dict[int, Perplexity]


class PositionLoss(_Schema):
    """Mean loss of the targets that have `start` to `end - 1` tokens before them."""

    start: int
    end: int
    loss: Number  # nats per token
    standard_error: Number  # of `loss` over windows; NaN for one window
    num_tokens: int


class Positions(Result):
    """Loss by position of one model in windows of `length` tokens."""

    FILE = "positions.json"

    length: int
    num_windows: int
    curve: list[PositionLoss] = Field(min_length=1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def reading_stops_at(self) -> int | None:
        """Where the loss rises for good (`reading_stops_at`)."""
        return reading_stops_at(self.curve)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """Say in one sentence where the loss is lowest and whether it rises for good after that."""
        lowest, stop = min(self.curve, key=lambda bucket: bucket.loss), self.reading_stops_at
        place = f"the loss is lowest, {lowest.loss:.3f}, after {lowest.start:,} to {lowest.end - 1:,} tokens"
        if stop is None:
            return f"{place}, and does not rise for good by more than two standard errors"
        return f"{place}, and from {stop:,} tokens on stays above that by more than two standard errors"


def reading_stops_at(curve: Sequence[PositionLoss]) -> int | None:
    """Name the position from which on the loss stays above its lowest value by more than two standard errors.

    The error is that of the difference of two buckets, taken as independent: `sqrt(se_lowest**2 + se**2)`. None if the
    last bucket is not that much worse, or if there is a single window and so no error.
    """
    lowest = min(range(len(curve)), key=lambda index: curve[index].loss)
    stop = None
    for bucket in reversed(curve[lowest + 1 :]):
        error = math.hypot(bucket.standard_error, curve[lowest].standard_error)
        if not bucket.loss - curve[lowest].loss > 2 * error:  # a NaN ends it too
            break
        stop = bucket.start
    return stop


class ShortContext(Result):
    """Two models on the same targets.

    With d_i the mean loss of window i of k less the base's on the same window, `difference` is the mean of d_i and its
    `standard_error` is `std(d_i, ddof=1) / sqrt(k)`: what both models find hard cancels. `low` and `high` are
    `exp(difference ± 1.96 * standard_error)`.
    """

    FILE = "short_context.json"

    base: str
    base_weights: str | None = None
    length: int  # tokens of a window: the base's own context
    num_tokens: int
    num_windows: int
    base_perplexity: float
    perplexity: float
    difference: float  # nats per token; above 0 the extended model is worse
    standard_error: float | None
    ratio: float  # `exp(difference)`: perplexity as a multiple of the base's
    low: float | None
    high: float | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """Say whether short context was kept, as far as the error lets one say."""
        change = f"perplexity {100 * (self.ratio - 1):+.1f} % at {self.length:,} tokens"
        if self.low is None or self.high is None:
            return f"{change}; a single window has no error: give more text"
        interval = f"95 % interval {100 * (self.low - 1):+.1f} to {100 * (self.high - 1):+.1f} %"
        if self.low > 1:
            return f"worse than its base: {change} ({interval})"
        if self.high < 1:
            return f"better than its base on these texts: {change} ({interval})"
        return f"no different from its base beyond the error: {change} ({interval})"


class Metric(_Schema):
    """A value with its standard error, where the harness has one."""

    value: float
    standard_error: float | None = None


class TaskResult(_Schema):
    """One task of the harness."""

    metrics: dict[str, Metric]
    num_samples: int | None = None
    num_cut: int = 0  # prompts that were too long and lost their beginning
    lengths: list[int] | None = None  # tokens of its texts, where it comes in lengths


class HarnessScore(NamedTuple):
    """One metric of one task."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    num_samples: int | None


class Harness(Result):
    """What lm-evaluation-harness measured about one model."""

    FILE = "harness.json"

    tasks: dict[str, TaskResult]

    @property
    def scores(self) -> list[HarnessScore]:
        """Every metric of every task."""
        return [
            HarnessScore(name, metric, score.value, score.standard_error, task.num_samples)
            for name, task in self.tasks.items()
            for metric, score in task.metrics.items()
        ]


class SuiteRecord(Result):
    """What a suite did with one model."""

    FILE = "suite.json"

    lengths: list[int] = Field(default_factory=list)
    left_out: list[str]  # what was not measured, each with its reason


RESULT_FILES: dict[str, type[Result]] = {
    kind.FILE: kind for kind in (Retrieval, PerplexityByLength, Positions, ShortContext, Harness, SuiteRecord)
}


def read_result(path: Path) -> Result:
    """Read a result file by its name.

    Raises:
        DataError: it was not written by `longlora eval`, or is damaged.
    """
    try:
        result = RESULT_FILES[path.name].model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # pydantic's own is a ValueError
        what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in getattr(error, "errors", list)())
        raise DataError(
            f"{path} is no result of `longlora eval` ({what or first_line(error)}); measure again, or leave it out"
        ) from error
    return result.model_copy(update={"path": path})


def finished(kind: type[R], folder: Path, settings: dict[str, Any], weights: str) -> R | None:
    """Return the result that an earlier start wrote into a folder; None if there is none.

    Raises:
        ConfigError: it is about other weights, or was measured otherwise.
        DataError: it is damaged.
    """
    path = folder / kind.FILE
    if not path.exists():
        return None
    result = read_result(path)
    here = json.loads(json.dumps(settings))
    if (result.settings, result.weights) != (here, weights):
        raise ConfigError(
            f"{path} holds another measurement ({result.settings}, weights {result.weights}; now {here}, weights "
            f"{weights}): choose another folder, or delete that one"
        )
    assert isinstance(result, kind)
    return result
