"""The log of losses survives what an interruption does to it, and what damages a line."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longlora.training.callbacks import MetricsLog

LINES = [json.dumps({"step": step, "loss": 5.0 - step}) + "\n" for step in range(1, 4)]


def begin(path: Path, *, step: int) -> list[int]:
    """Resume from a step; give the steps that the log holds then."""
    state: Any = SimpleNamespace(is_world_process_zero=True, global_step=step)
    MetricsLog(path).on_train_begin(None, state, None)  # type: ignore[arg-type]
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("torn", ["", '{"step": 4, "lo'])
def test_steps_that_are_done_again_are_dropped(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(LINES) + torn, encoding="utf-8")
    assert begin(path, step=2) == [1, 2]


def test_what_is_damaged_is_set_aside_and_the_rest_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    damaged = LINES[0] + "\0\0\0\n" + "[1]\n" + '{"step": "2"}\n{"step": 2, "a": "\\ud800"}\n' + LINES[2]
    path.write_text(damaged, encoding="utf-8")
    assert begin(path, step=3) == [1, 3]
    assert "4 of its 6 lines cannot be used" in caplog.text
    assert (tmp_path / "damaged-metrics.jsonl").read_text(encoding="utf-8") == damaged
