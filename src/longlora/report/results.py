"""The files that evaluations write, read into plain values; nothing here knows how they were measured.

result.json         a test of retrieval: passkey, needle, topics, recall
perplexity.json     perplexity by length
positions.json      loss by position
short_context.json  perplexity at the base's own context, base and extended, paired
harness.json        tasks of lm-evaluation-harness
suite.json          what a suite left out, and why
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from longlora.errors import DataError

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of right answers with its 95 % interval."""

    share: float
    low: float
    high: float
    num_trials: int


@dataclass(frozen=True, kw_only=True)
class RetrievalRow:
    """Shares at one length in tokens, by measure, and by depth and measure."""

    length: int
    shares: dict[str, Share]
    by_depth: dict[str, dict[str, Share]]


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """A test of retrieval."""

    title: str
    """Name of the test, with what sets it apart from its usual form."""

    bar: float
    effective: dict[str, int | None]
    """By measure: the longest tested length with at least `bar` there and at every shorter one, in tokens."""

    chance: dict[str, float]
    rows: list[RetrievalRow]

    @property
    def reached(self) -> int | None:
        """Up to how many tokens answers were generated right."""
        return self.effective["generated"]


@dataclass(frozen=True, kw_only=True)
class PerplexityRow:
    """Perplexity at one context length."""

    length: int
    perplexity: float | None
    standard_error: float | None
    """Of the loss, in nats per token."""

    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class PerplexityByLength:
    """Perplexity at several context lengths."""

    protocol: str
    data: str
    targets: str
    """What decides which tokens are scored; models can be compared where it is the same."""

    rows: list[PerplexityRow]


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Mean loss, nats per token, of the targets with `start` to `end - 1` tokens before them."""

    start: int
    end: int
    loss: float
    standard_error: float | None


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Loss by position in windows of `length` tokens."""

    length: int
    num_windows: int
    verdict: str
    buckets: list[Bucket]


@dataclass(frozen=True, kw_only=True)
class ShortContext:
    """A model against the base it was made of, on the same tokens at the base's own context."""

    base: str
    length: int
    num_tokens: int
    base_perplexity: float
    perplexity: float
    difference: float
    """Loss less the base's, nats per token."""

    standard_error: float | None
    """Of the difference, over windows."""

    ratio: float
    low: float | None
    high: float | None
    """Perplexity as a multiple of the base's, with its 95 % interval."""

    verdict: str


@dataclass(frozen=True, kw_only=True)
class HarnessScore:
    """One metric of one task."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    num_samples: int | None


@dataclass(frozen=True, kw_only=True)
class Harness:
    """What lm-evaluation-harness measured."""

    scores: list[HarnessScore]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What a suite did not measure."""

    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Found:
    """One result file: whose it is, what it says, and where it comes from."""

    path: Path
    model: str
    weights: str | None
    """Digest of the weights, where the file has it."""

    context: int | None
    """Tokens that the model says it reads, where the file has it."""

    result: Retrieval | PerplexityByLength | Positions | ShortContext | Harness | LeftOut
    settings: dict[str, Any]
    provenance: dict[str, Any]


def read_result(path: Path) -> Found:
    """Read a result file by its name.

    Raises:
        DataError: it was not written by `longlora eval`, or is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = dict(content.get("settings") or {})
        return Found(
            path=path,
            model=str(content["model"] if "model" in content else settings["model"]),
            weights=content.get("weights", settings.get("weights")),
            context=content.get("context"),
            result=RESULT_FILES[path.name](content),
            settings=settings,
            provenance=dict(content["provenance"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no result of `longlora eval` ({type(error).__name__}: {error}); measure again, or leave it out"
        ) from error


def _retrieval(content: Mapping[str, Any]) -> Retrieval:
    return Retrieval(
        title=_title(content["test"], content["settings"]),
        bar=float(content["bar"]),
        effective=dict(content["effective_length"]),
        chance=dict(content["chance"]),
        rows=[
            RetrievalRow(
                length=int(row["length"]),
                shares=_shares(row["shares"]),
                by_depth={depth: _shares(shares) for depth, shares in row["by_depth"].items()},
            )
            for row in content["lengths"]
        ],
    )


def _title(test: str, settings: Mapping[str, Any]) -> str:
    """Name a test with what makes it harder or other than its usual form."""
    if test == "needle" and settings.get("num_needles", 1) > 1:
        return f"{test}, {settings['num_needles']} facts"
    if test == "recall":
        return f"{test} of {settings['num_pairs']}"
    if settings.get("form") == "original":
        return f"{test}, original form"
    return test


def _shares(values: Mapping[str, Any]) -> dict[str, Share]:
    return {measure: Share(**share) for measure, share in values.items()}


def _perplexity(content: Mapping[str, Any]) -> PerplexityByLength:
    return PerplexityByLength(
        protocol=content["protocol"],
        data=content["data"],
        targets=json.dumps(content["settings"], sort_keys=True),
        rows=[
            PerplexityRow(
                length=int(length),
                perplexity=row["perplexity"],
                standard_error=row["standard_error"],
                num_tokens=row["num_tokens"],
            )
            for length, row in content["perplexity"].items()
        ],
    )


def _positions(content: Mapping[str, Any]) -> Positions:
    return Positions(
        length=content["length"],
        num_windows=content["num_windows"],
        verdict=content["verdict"],
        buckets=[
            Bucket(start=row["start"], end=row["end"], loss=row["loss"], standard_error=row["standard_error"])
            for row in content["curve"]
        ],
    )


def _short_context(content: Mapping[str, Any]) -> ShortContext:
    return ShortContext(
        base=content["base"],
        length=content["length"],
        num_tokens=content["num_tokens"],
        base_perplexity=content["base_perplexity"],
        perplexity=content["perplexity"],
        difference=content["difference"],
        standard_error=content["standard_error"],
        ratio=content["ratio"],
        low=content["low"],
        high=content["high"],
        verdict=content["verdict"],
    )


def _harness(content: Mapping[str, Any]) -> Harness:
    return Harness(
        scores=[
            HarnessScore(
                task=task,
                metric=metric,
                value=float(score["value"]),
                standard_error=score["standard_error"],
                num_samples=values["num_samples"],
            )
            for task, values in content["tasks"].items()
            for metric, score in values["metrics"].items()
        ]
    )


def _left_out(content: Mapping[str, Any]) -> LeftOut:
    return LeftOut(notes=[str(note) for note in content["left_out"]])


RESULT_FILES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "result.json": _retrieval,
    "perplexity.json": _perplexity,
    "positions.json": _positions,
    "short_context.json": _short_context,
    "harness.json": _harness,
    "suite.json": _left_out,
}
