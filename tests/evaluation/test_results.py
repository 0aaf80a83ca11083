"""One schema writes and reads each result file, and files of earlier versions are read as they were."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from longlora.errors import DataError
from longlora.evaluation.perplexity import perplexity_of
from longlora.evaluation.results import (
    RESULT_FILES,
    Harness,
    LossByPosition,
    PerplexityByLength,
    Result,
    Retrieval,
    SuiteRecord,
    read_result,
)
from longlora.evaluation.text_results import Perplexity, PositionLoss

SHARE = {"share": 1.0, "low": 0.7, "high": 1.0, "num_trials": 10}
WHEN = {"date": "2026-11-24T12:00:00+00:00", "command": "longlora eval"}
# As version 0.1 wrote them: the name of the model among the settings, None for what is not finite.
EARLIER: dict[str, dict[str, Any]] = {
    "result.json": {
        "test": "needle",
        "bar": 0.9,
        "chance": {"generated": 0.0},
        "lengths": [
            {
                "length": 512,
                "mean_tokens": 500.5,
                "mean_distance": 200.0,
                "shares": {"generated": SHARE},
                "by_depth": {"0.5": {"generated": SHARE}},
                "means": {"found": 1.0},
            }
        ],
        "settings": {"test": "needle", "num_needles": 3, "seed": 0, "model": "m", "weights": "abc"},
        "provenance": WHEN,
    },
    "perplexity.json": {
        "model": "m",
        "weights": "abc",
        "context": 1024,
        "protocol": "all",
        "data": "books",
        "perplexity": {
            "512": {
                "perplexity": None,
                "loss": 800.0,
                "num_tokens": 511,
                "num_windows": 1,
                "standard_error": None,
                "window_losses": [],
            }
        },
        "settings": {"stride": 256},
        "provenance": WHEN,
    },
    "positions.json": {
        "model": "m",
        "length": 3,
        "context": 1024,
        "num_windows": 1,
        "curve": [{"start": 1, "end": 3, "loss": 2.5, "standard_error": None, "num_tokens": 2}],
        "provenance": WHEN,
        "weights": None,
        "settings": {},
        "reading_stops_at": None,
        "verdict": "the loss is lowest, 2.500, after 1 to 2 tokens, and does not rise for good by more than two "
        "standard errors",
    },
    "longppl.json": {
        "model": "m",
        "weights": "abc",
        "context": 1024,
        "evaluator": "b",
        "evaluator_weights": "def",
        "data": "books",
        "length": 1024,
        "short": 128,
        "num_targets": 512,
        "all_targets": {
            "perplexity": 8.0,
            "loss": 2.079,
            "num_tokens": 512,
            "num_windows": 2,
            "standard_error": 0.1,
            "window_losses": [],
        },
        "key_tokens": None,
        "by_distance": [{"start": 128, "end": 256, "loss": 2.5, "standard_error": None, "num_tokens": 2}],
        "settings": {},
        "provenance": WHEN,
    },
    "key_tokens.json": {
        "model": "m",
        "weights": "abc",
        "context": 1024,
        "data": "books",
        "contexts": [128, 256],
        "stride": 2,
        "longest": 256,
        "evidence": [[0, 256]],
        "settings": {},
        "provenance": WHEN,
    },
    "short_context.json": {
        "model": "m",
        "weights": "abc",
        "base": "b",
        "base_weights": "def",
        "length": 64,
        "num_tokens": 640,
        "num_windows": 10,
        "base_perplexity": 8.0,
        "perplexity": 8.1,
        "difference": 0.012,
        "standard_error": None,
        "ratio": 1.012,
        "low": None,
        "high": None,
        "settings": {"data": "books"},
        "provenance": WHEN,
        "verdict": "perplexity +1.2 % at 64 tokens; a single window has no error: give more text",
    },
    "harness.json": {
        "model": "m",
        "weights": "abc",
        "context": 1024,
        "settings": {"limit": None},
        "tasks": {
            "piqa": {
                "metrics": {"acc": {"value": 0.5, "standard_error": None}},
                "num_samples": 4,
                "num_cut": 1,
                "lengths": None,
            }
        },
        "provenance": WHEN,
    },
    "suite.json": {
        "model": "m",
        "weights": "abc",
        "context": 1024,
        "settings": {"suite": "quick"},
        "lengths": [256, 1024],
        "left_out": ["topics at 8 tokens"],
        "provenance": WHEN,
    },
}


def test_every_file_has_an_example() -> None:
    assert EARLIER.keys() == RESULT_FILES.keys()


@pytest.mark.parametrize("name", EARLIER)
def test_earlier_files_are_read_and_written_again_without_a_change(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(EARLIER[name]), encoding="utf-8")
    result = read_result(tmp_path / name)
    assert (result.model, result.path, result.provenance) == ("m", tmp_path / name, WHEN)
    result.write(tmp_path / "again")
    written = json.loads((tmp_path / "again" / name).read_text(encoding="utf-8"))
    assert {key: written[key] for key in EARLIER[name]} == EARLIER[name]
    computed = {"effective_length", "verdict"} if name in ("result.json", "longppl.json") else set()
    assert written.keys() - EARLIER[name].keys() <= {"model", "weights", "context"} | computed


def read(tmp_path: Path, name: str) -> Result:
    (tmp_path / name).write_text(json.dumps(EARLIER[name]), encoding="utf-8")
    return read_result(tmp_path / name)


def test_what_a_report_asks_of_them(tmp_path: Path) -> None:
    retrieval = read(tmp_path, "result.json")
    assert isinstance(retrieval, Retrieval)
    assert (retrieval.title, retrieval.reading.reached, retrieval.weights) == ("needle, 3 facts", None, "abc")
    assert retrieval.effective_length == {"generated": {"bar": None, "nolima": 512, "ruler": None}}
    perplexity = read(tmp_path, "perplexity.json")
    assert isinstance(perplexity, PerplexityByLength)
    ((length, value),) = perplexity.perplexity.items()
    assert (length, value.num_tokens) == (512, 511)
    assert math.isnan(value.perplexity) and math.isnan(value.standard_error)
    positions = read(tmp_path, "positions.json")
    assert isinstance(positions, LossByPosition) and len(positions.curve) == 1
    assert positions.curve[0].loss == 2.5 and math.isnan(positions.curve[0].standard_error)
    harness = read(tmp_path, "harness.json")
    assert isinstance(harness, Harness) and harness.scores == [("piqa", "acc", 0.5, None, 4)]
    suite = read(tmp_path, "suite.json")
    assert isinstance(suite, SuiteRecord) and suite.left_out == ["topics at 8 tokens"]


def test_numbers_that_are_not_finite_become_null_and_nothing_else_does(tmp_path: Path) -> None:
    value = Perplexity(perplexity=math.inf, loss=0.1 + 0.2, num_tokens=3, num_windows=1, standard_error=math.nan)
    PerplexityByLength(model="m", protocol="new", data="d", perplexity={8: value}).write(tmp_path)
    written = json.loads((tmp_path / "perplexity.json").read_text())["perplexity"]["8"]
    assert (written["perplexity"], written["standard_error"], written["loss"]) == (None, None, 0.1 + 0.2)


@pytest.mark.parametrize("name", EARLIER)
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    required = next(key for key, field in RESULT_FILES[name].model_fields.items() if field.is_required())
    content = {key: value for key, value in EARLIER[name].items() if key not in (required, "settings")}
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{name} is no result of `longlora eval` \({required}: Field required"):
        read_result(tmp_path / name)


def test_a_curve_has_at_least_one_point() -> None:
    with pytest.raises(ValueError, match="curve"):
        LossByPosition(model="m", length=8, num_windows=1, curve=list[PositionLoss]())


def by_length(*losses: list[float]) -> PerplexityByLength:
    values = {
        1024 * 2**place: perplexity_of([(100 * loss, 100) for loss in own], keep_windows=True)
        for place, own in enumerate(losses)
    }
    return PerplexityByLength(model="m", protocol="same-targets", data="d", perplexity=values)


def test_perplexity_falls_as_far_as_every_window_says_so() -> None:
    hard = [1.0, 2.0, 3.0, 4.0]  # windows differ by far more than lengths do: only pairs tell
    assert by_length(hard, [x - 0.1 for x in hard], [x - 0.2 for x in hard]).falls_to == 4096
    assert by_length(hard, [x - 0.1 for x in hard], [0.9, 2.1, 2.8, 3.8]).falls_to == 2048
    assert by_length(hard, hard, [0.0] * 4).falls_to == 1024
    assert by_length(hard).falls_to is None and by_length([1.0], [0.5]).falls_to is None


def test_a_collapse_is_a_rise_beyond_the_error() -> None:
    calm = [2.0, 2.1, 1.9, 2.0]
    assert by_length(calm, [x + 0.6 for x in calm], calm).collapses_at == 2048
    assert by_length(calm, [x + 0.3 for x in calm]).collapses_at is None  # 35 % worse is bad, but no collapse
    assert by_length(calm, [0.0, 5.0, 0.0, 5.4]).collapses_at is None  # a mean as high, of windows that disagree
    assert by_length(calm, [2000.0, 2000.0]).collapses_at == 2048
