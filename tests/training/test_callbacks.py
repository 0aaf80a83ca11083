"""The log of losses survives what an interruption does to it, and says which line it cannot read."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longlora.errors import DataError
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


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES[0] + "\0\0\0\n" + LINES[2], encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be read in line 2 .*delete that line"):
        begin(path, step=3)
