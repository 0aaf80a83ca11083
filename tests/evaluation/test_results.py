"""One schema writes and reads each result file, and files of earlier versions are read as they were."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from longlora.errors import DataError
from longlora.evaluation.results import (
    RESULT_FILES,
    Harness,
    Perplexity,
    PerplexityByLength,
    PositionLoss,
    Positions,
    Result,
    Retrieval,
    SuiteRecord,
    read_result,
)

SHARE = {"share": 1.0, "low": 0.7, "high": 1.0, "num_trials": 10}
WHEN = {"date": "2026-11-24T12:00:00+00:00", "command": "longlora eval"}
# As version 0.1 wrote them: the name of the model among the settings, None for what is not finite.
EARLIER: dict[str, dict[str, Any]] = {
    "result.json": {
        "test": "needle",
        "bar": 0.9,
        "effective_length": {"generated": 512},
        "verdict": "reads to 512 tokens",
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
            "512": {"perplexity": None, "loss": 800.0, "num_tokens": 511, "num_windows": 1, "standard_error": None}
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
    assert written.keys() - EARLIER[name].keys() <= {"model", "weights", "context"}


def read(tmp_path: Path, name: str) -> Result:
    (tmp_path / name).write_text(json.dumps(EARLIER[name]), encoding="utf-8")
    return read_result(tmp_path / name)


def test_what_a_report_asks_of_them(tmp_path: Path) -> None:
    retrieval = read(tmp_path, "result.json")
    assert isinstance(retrieval, Retrieval)
    assert (retrieval.title, retrieval.reached, retrieval.weights) == ("needle, 3 facts", 512, "abc")
    perplexity = read(tmp_path, "perplexity.json")
    assert isinstance(perplexity, PerplexityByLength)
    ((length, value),) = perplexity.perplexity.items()
    assert (length, value.num_tokens) == (512, 511)
    assert math.isnan(value.perplexity) and math.isnan(value.standard_error)
    positions = read(tmp_path, "positions.json")
    assert isinstance(positions, Positions) and len(positions.curve) == 1
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
        Positions(model="m", length=8, num_windows=1, curve=list[PositionLoss]())
