"""The benchmark of attention, at lengths where its numbers mean nothing: its checks and its files are whole."""

import csv
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "benchmarks" / "attention.py"
ON_A_CPU = ["full causal, SDPA", "S², sdpa", "S², explicit", "roll, SDPA", "roll, unfused"]


@pytest.fixture
def load(monkeypatch):
    """Import a module of the folder of benchmarks, as its scripts do."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the attentions of CUDA are others")
def test_the_report_is_whole(tmp_path):
    done = run("--quick", "--lengths", "64", "128", "--most-gib", "0.0002", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"attention-cpu.csv", "attention-cpu.md", "attention-cpu.png"}

    lines = (tmp_path / "attention-cpu.csv").read_text(encoding="utf-8").splitlines()
    origin = dict(line.removeprefix("# ").split(": ", 1) for line in lines if line.startswith("#"))
    assert origin["command"].startswith("python benchmarks/attention.py --quick --lengths 64 128")
    assert origin["versions"].endswith(f"torch {torch.__version__}")
    assert set(origin) == {"command", "device", "threads", "versions", "date", "commit", "load"}

    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    keys = [(row["heads"], row["passes"], row["num_tokens"], row["attention"]) for row in rows]
    assert keys == [
        (heads, passes, length, attention)
        for heads in ("MHA", "GQA 8:1")
        for passes in ("forward", "forward + backward")
        for length in ("64", "128")
        for attention in ON_A_CPU
    ]
    for row in rows:
        too_large = row["attention"] == "roll, unfused" and row["num_tokens"] == "128"
        assert bool(row["note"]) == too_large and bool(row["seconds"]) != too_large
        measured = row["passes"] == "forward + backward" and not too_large
        assert bool(row["peak_share"]) == measured
        if not too_large:
            assert float(row["seconds"]) > 0
        if row["attention"] == "full causal, SDPA":
            assert float(row["times_as_fast_as_full"]) == 1

    page = (tmp_path / "attention-cpu.md").read_text(encoding="utf-8")
    assert "left out: about 0 GiB of scores, more than 0.0002" in page
    assert all(value in page for value in origin.values())
    assert (tmp_path / "attention-cpu.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("lengths", [["63"], ["0"], ["64", "2"]])
def test_refuses_lengths_that_have_no_quarter(lengths, load, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["attention.py", "--quick", "--lengths", *lengths])
    with pytest.raises(SystemExit) as refused:
        load("attention").main()
    assert refused.value.code == 2 and "must be multiples of 4" in capsys.readouterr().err


def test_an_attention_that_is_wrong_would_be_noticed(load, monkeypatch):
    attentions = load("_attentions")
    shape = attentions.Shape(36, num_heads=4, num_kv_heads=2, head_dim=8)
    cpu = torch.device("cpu")
    assert attentions.disagreements(cpu, torch.float32, [shape]) == []

    def wrong(query, key, value, group_size):
        return attentions.full_causal(query, key, value, group_size) * (1 + 1e-3)

    monkeypatch.setattr(attentions, "rolled", wrong)
    found = attentions.disagreements(cpu, torch.float32, [shape])
    assert found and all("roll, SDPA" in line for line in found)


def test_without_parity_there_is_no_report(load, monkeypatch, tmp_path, capsys):
    benchmark = load("attention")
    monkeypatch.setattr(benchmark, "disagreements", lambda *_: ["S², sdpa: differs by 1"])
    monkeypatch.setattr(sys, "argv", ["attention.py", "--quick", "--output", str(tmp_path)])
    assert benchmark.main() == 1
    assert "S², sdpa: differs by 1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ratios_are_medians_of_those_within_a_round(load):
    times_as_fast = load("_measure").times_as_fast
    seconds = {"fast": [1.0, 10.0, 2.0], "slow": [5.0, 20.0, 3.0]}
    assert times_as_fast(seconds, "fast", "slow") == 2  # of 5, 2 and 1.5; of the medians it would be 5 / 2
    assert times_as_fast(seconds, "slow", "fast") == 0.5
    assert times_as_fast(seconds, "fast", "left out") is None


BLOCK = 64 * 2**20


def hold_and_let_go():
    """Need a block for a moment, and keep a quarter of one."""

    def run() -> torch.Tensor:
        torch.ones(BLOCK, dtype=torch.uint8)
        return torch.ones(BLOCK // 4, dtype=torch.uint8)

    return run


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak cannot be set back here")
def test_peak_memory_is_what_is_held_at_a_time(load):
    measure: ModuleType = load("_measure")
    peak = measure.peak_memory(hold_and_let_go, torch.device("cpu"))
    assert BLOCK <= peak < 1.2 * BLOCK
