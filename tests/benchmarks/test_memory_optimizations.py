"""The script that measures the optimizations runs to its end, notices one that changes losses, and draws."""

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def optimizations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("memory_optimizations")


@pytest.mark.slow  # half a minute and more: every optimization has a process of its own
def test_the_script_measures_every_optimization(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent / "src") + os.pathsep + os.pathsep.join(sys.path)}
    command = [sys.executable, str(BENCHMARKS / "memory_optimizations.py"), "--quick", "--output", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (table,) = tmp_path.glob("memory-optimizations-*.csv")
    rows = list(csv.DictReader(line for line in table.read_text().splitlines() if not line.startswith("#")))
    assert [row["optimization"] for row in rows[:4]] == [
        "none",
        "loss in pieces",
        "checkpointing",
        "tiled feed-forward",
    ]
    assert all(int(row["peak_bytes"]) > 10e6 and float(row["tokens_per_second"]) > 0 for row in rows)
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md", ".png"}


def test_one_run_of_it(optimizations: ModuleType, tmp_path: Path) -> None:
    values = {
        "model_name_or_path": "tiny",
        "output_dir": str(tmp_path / "run"),
        "context_length": 264,
        "data": {"source": optimizations.enough_text(2 * 264), "cache_dir": str(tmp_path / "texts")},
        "max_steps": 2,
        "gradient_accumulation_steps": 1,
        "save_steps": 3,
        **optimizations.NONE,
    }
    optimizations.make_run(values)()
    assert len(json.loads((tmp_path / "run" / "seconds.json").read_text())) == 2


def test_an_optimization_that_changes_losses_is_named(optimizations: ModuleType) -> None:
    rows = [
        optimizations.Row(optimization="none", keys="", losses="3.000000 2.000000"),
        optimizations.Row(optimization="checkpointing", keys="", losses="3.000001 2.000000"),
        optimizations.Row(optimization="tiled feed-forward", keys="", losses="3.000000 2.100000"),
        optimizations.Row(optimization="4-bit base", keys="", losses="3.300000 2.000000"),
        optimizations.Row(optimization="offloading", keys="", note="out of memory"),
    ]
    (found,) = optimizations.changed_losses(rows, torch.device("cpu"))
    assert found.startswith("tiled feed-forward: by up to 5.0e-02")
    assert rows[3].loss_difference == pytest.approx(0.1)


def test_a_run_without_numbers_is_reported_with_its_reason(optimizations: ModuleType, tmp_path: Path) -> None:
    from _memory_optimizations_report import write_report
    from _report import provenance

    rows = [
        optimizations.Row(optimization="none", keys="", note="CUDA out of memory"),
        optimizations.Row(
            optimization="checkpointing", keys="gradient_checkpointing=True", peak_bytes=2**30, tokens_per_second=9.0
        ),
    ]
    write_report(rows, tmp_path, torch.device("cpu"), provenance(torch.device("cpu")), model="`tiny`")
    page = (tmp_path / "memory-optimizations-cpu.md").read_text()
    assert "| none |  | CUDA out of memory |" in page
    assert "| + checkpointing | `gradient_checkpointing=True` | 1,024 MiB | — | 9 | — |" in page
