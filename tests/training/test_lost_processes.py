"""What becomes of the others when a rank of a run is gone, whatever they are doing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.cpu
def test_ranks_end_when_one_is_gone() -> None:
    command = [sys.executable, "-m", "tests.training.lost_ranks"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert done.returncode == 0, done.stderr
    *killed, refused, finished = json.loads(done.stdout)
    for victim, (statuses, said) in zip((2, 0, 1), killed, strict=True):
        assert statuses == [-9 if rank == victim else 1 for rank in range(3)]
        for rank, text in enumerate(said):
            assert rank == victim or text.count(f"longlora: process {victim} is gone") == text.count("\n") == 1
    assert refused == [[1, 1, 1], ["longlora: a mistake\n"] * 3]  # each at its time
    assert finished == [[0, 0, 0], ["", "", ""]]
