"""Schemas of all evaluation result files, written by the measurements and read by `longlora report`.

result.json         `Retrieval`: passkey, needle, topics, recall, association, tracking, counting
perplexity.json     `PerplexityByLength`
positions.json      `LossByPosition`: loss by position
longppl.json        `LongPerplexity`: perplexity on the tokens that need far context, chosen in key_tokens.json
short_context.json  `ShortContext`: a paired comparison of a model and its base at the base context
harness.json        `Harness`: tasks of lm-evaluation-harness
suite.json          `SuiteRecord`: what a suite measured and left out
"""

import json
import math
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import Field, computed_field, model_validator

from longlora.errors import ConfigError, DataError, first_line
from longlora.evaluation.schema import Result, Schema
from longlora.evaluation.shares import BAR, Definition, ReadLength, Share, effective_length, reading, verdict, wilson
from longlora.evaluation.text_results import KeyTokens, LongPerplexity, LossByPosition, PerplexityByLength, ShortContext

R = TypeVar("R", bound=Result)
_VERBS = {"generated": "reads", "chosen": "tells the right value from the others"}


class RetrievalRow(Schema):
    """Summary of all trials at one length."""

    length: int
    mean_tokens: float  # of the prompts
    mean_distance: float  # tokens from the fact to the end of the prompt
    shares: dict[str, Share]  # by measure: `generated`, and `chosen` if there is a forced choice
    by_depth: dict[str, dict[str, Share]]  # the same by depth; a single entry `drawn` if the test itself places facts
    means: dict[str, float]  # of the graded scores: `found`, and with a forced choice `rank` and `margin` (nats)


class Retrieval(Result):
    """The result of a retrieval test."""

    FILE = "result.json"

    test: str
    bar: float
    chance: dict[str, float]
    lengths: list[RetrievalRow] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_settings(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(settings := values.get("settings"), dict):
            return values
        return {name: settings[name] for name in ("model", "weights") if name in settings} | values

    @property
    def title(self) -> str:
        """The test's name, with the settings that make it differ from its usual form."""
        if self.test == "needle" and self.settings.get("num_needles", 1) > 1:
            return f"{self.test}, {self.settings['num_needles']} facts"
        if self.test == "recall":
            return f"{self.test} of {self.settings['num_pairs']}"
        return f"{self.test}, original form" if self.settings.get("form") == "original" else self.test

    def shares(self, measure: str = "generated") -> dict[int, Share]:
        """Return the shares of right answers by length."""
        return {row.length: row.shares[measure] for row in self.lengths}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def effective_length(self) -> dict[str, dict[Definition, int | None]]:
        """The effective length by measure and by definition (`longlora.evaluation.shares`)."""
        return {
            measure: {
                definition: effective_length(self.shares(measure), bar=self.bar, definition=definition)
                for definition in get_args(Definition)
            }
            for measure in self.chance
        }

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> str:
        """One sentence per measure: how far the model reads, or why that is unknown."""
        return "\n".join(verdict(self.shares(measure), bar=self.bar, verb=_VERBS[measure]) for measure in self.chance)

    @property
    def reading(self) -> ReadLength:
        """How far the model reads, judged from its generated answers."""
        return reading(self.shares(), bar=self.bar)

    @property
    def at_shortest(self) -> Share:
        """The share of right answers at the shortest length."""
        return self.shares()[self.lengths[0].length]

    @property
    def is_zero(self) -> bool:
        """Whether no answer was right at any length."""
        return not any(share.share for share in self.shares().values())


class Metric(Schema):
    """A value with its standard error, if the harness has one."""

    value: float
    standard_error: float | None = None


class TaskResult(Schema):
    """The result of one task of the harness."""

    metrics: dict[str, Metric]
    num_samples: int | None = None
    num_cut: int = 0  # prompts that were too long and lost their beginning
    lengths: list[int] | None = None  # prompt lengths in tokens, if the task has lengths


class HarnessScore(NamedTuple):
    """One metric of one task."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    num_samples: int | None


class Harness(Result):
    """Results of lm-evaluation-harness for one model."""

    FILE = "harness.json"

    tasks: dict[str, TaskResult]

    @property
    def scores(self) -> list[HarnessScore]:
        """All metrics of all tasks."""
        return [
            HarnessScore(name, metric, score.value, score.standard_error, task.num_samples)
            for name, task in self.tasks.items()
            for metric, score in task.metrics.items()
        ]

    def by_length(self) -> list[Retrieval]:
        """Return tasks with lengths, such as `ruler_vt@8192`, as retrieval tests whose shares are the scores.

        A score may be a mean of partly right answers; its interval is computed as if it were a share of that many.
        """
        rows: dict[str, list[RetrievalRow]] = {}
        for name, task in self.tasks.items():
            test, at, _ = name.partition("@")
            scores = [score.value for score in task.metrics.values() if 0 <= score.value <= 1]
            if at and task.lengths and task.num_samples and scores:
                share = {"generated": wilson(scores[0] * task.num_samples, task.num_samples)}
                length = task.lengths[0]
                row = RetrievalRow(
                    length=length, mean_tokens=length, mean_distance=length, shares=share, by_depth={}, means={}
                )
                rows.setdefault(test, []).append(row)
        about = {"model": self.model, "weights": self.weights, "context": self.context, "path": self.path}
        return [
            Retrieval(
                test=test, bar=BAR, chance={"generated": 0.0}, lengths=sorted(own, key=attrgetter("length")), **about
            )
            for test, own in rows.items()
        ]


class SuiteRecord(Result):
    """What a suite measured for one model."""

    FILE = "suite.json"

    lengths: list[int] = Field(default_factory=list)
    left_out: list[str]  # what was not measured, each with its reason


_KINDS = Retrieval, PerplexityByLength, LossByPosition, ShortContext, LongPerplexity, KeyTokens, Harness, SuiteRecord
RESULT_FILES: dict[str, type[Result]] = {kind.FILE: kind for kind in _KINDS}


def read_result(path: Path) -> Result:
    """Read a result file; its name determines the schema.

    Raises:
        DataError: it was not written by `longlora eval`, or is damaged.
    """
    try:
        result = RESULT_FILES[path.name].model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # pydantic's ValidationError is a ValueError
        what = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in getattr(error, "errors", list)())
        raise DataError(
            f"{path} is no result of `longlora eval` ({what or first_line(error)}); measure again, or leave it out"
        ) from error
    return result.model_copy(update={"path": path})


def read_lm_eval(path: Path) -> Harness:
    """Read a result file of lm-evaluation-harness itself (`results_….json`); each RULER length becomes a task.

    Raises:
        DataError: it is not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tasks: dict[str, Any] = {}
        for task, values in content["results"].items():
            metrics = harness_metrics(values)
            count = content.get("n-samples", {}).get(task, {}).get("effective")
            sizes = [name for name in metrics if name.isdigit()]
            for size in sizes:
                own = {size: metrics.pop(size)}
                number = count and count // len(sizes)
                tasks[f"{task}@{size}"] = {"metrics": own, "num_samples": number, "lengths": [int(size)]}
            if metrics:
                tasks[task] = {"metrics": metrics, "num_samples": count}
        name = content.get("model_name") or content["config"]["model_args"]
        versions = {"lm_eval": content["lm_eval_version"]} if content.get("lm_eval_version") else {}
        provenance = {"command": "", "packages": versions}
        context = content.get("max_length")
        about = {"model": str(name), "context": context if isinstance(context, int) else None, "path": path}
        return Harness.model_validate(about | {"tasks": tasks, "provenance": provenance})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no result of lm-evaluation-harness ({first_line(error)})") from error


def harness_metrics(results: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Pair the harness's flat `metric,filter` and `metric_stderr,filter` entries into metrics with standard errors.

    RULER's -1, which marks a length that was not run, is left out.
    """
    metrics: dict[str, dict[str, float | None]] = {}
    for key, value in results.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        if value == -1 and name.isdigit():
            continue
        error = results.get(f"{name}_stderr,{kind}")
        title = name if kind == "none" else f"{name} ({kind})"
        known = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
        metrics[title] = {"value": float(value), "standard_error": known}
    return metrics


def finished(kind: type[R], folder: Path, settings: dict[str, Any], weights: str) -> R | None:
    """Return the result that an earlier run wrote into a folder; None if there is none.

    Raises:
        ConfigError: it has other weights or settings.
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
