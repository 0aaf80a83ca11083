"""The grid on sink tokens: its cells on the tiny model, and that the page on them says what its rows say."""

import importlib.util
import json
import math
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from longlora.tiny import tiny_model_directory

ROOT = Path(__file__).parents[2]
SINK = ROOT / "benchmarks" / "sink"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Load a script of the folder as a module."""
    monkeypatch.syspath_prepend(str(SINK))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def module(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"sink_{name}", SINK / f"{name}.py")
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, loaded)
        spec.loader.exec_module(loaded)
        return loaded

    return module


def test_the_page_says_what_the_rows_say(load) -> None:
    page = (ROOT / "docs" / "sink.md").read_text(encoding="utf-8")
    report = load("report")
    tables = report.tables(report.read_rows())
    assert tables
    for title, table in tables.items():
        assert f"### {title}\n\n{table}\n" in page
    by_cell = {(row["tokens"], row["pattern"]): row["loss"] for row in report.read_rows() if "loss" in row}
    for tokens, share in ((1024, "77 %"), (4096, "80 %")):
        full, paper, sink = (by_cell[tokens, pattern] for pattern in ("full", "s2", "s2 sink1"))
        assert f"{(paper - sink) / (paper - full):.0%}".replace("%", " %") == share
        assert share in page
    on_cpu = {
        row["pattern"]: row["loss"]
        for row in report.read_rows()
        if row["card"] == "cpu" and row["tokens"] == 1024 and "loss" in row
    }
    for pattern, share in (("s2 sink1 full6", "84 %"), ("s2 sink1 full3", "90 %"), ("s2 sink1", "75 %")):
        gone = (on_cpu["s2"] - on_cpu[pattern]) / (on_cpu["s2"] - on_cpu["full"])
        assert f"{gone:.0%}".replace("%", " %") == share and share in page


def test_the_text_says_what_leaving_the_shift_out_is_worth(load) -> None:
    report = load("report")
    losses = {
        (row["pattern"], row["seed"]): row["loss_full_attention"]
        for row in report.read_rows()
        if (row["kind"], row["card"], row["dtype"]) == ("train", "cpu", "bfloat16")
    }
    gained = [losses["s2 sink1 full6", seed] - losses["rows full6", seed] for seed in range(3)]
    half_width = 4.303 * statistics.stdev(gained) / math.sqrt(3)  # of the 95 % interval, by Student's t
    text = f"{statistics.mean(gained):.4f} ± {half_width:.4f}"
    for page in ("sink.md", "log.md", "decisions/0016-unshifted-groups.md"):
        assert text in (ROOT / "docs" / page).read_text(encoding="utf-8")


@pytest.mark.slow
def test_cells_are_measured_once_and_patterns_differ(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "validation"):
        (tmp_path / "texts" / "books" / split).mkdir(parents=True)
        for number in range(2):
            text = "".join(f"def name_{i}(self): return {i * number}\n" for i in range(400))
            (tmp_path / "texts" / "books" / split / f"{number}.txt").write_text(text)
    grid = load("grid")
    monkeypatch.setattr(grid, "BEFORE", ["full", "s2", "s2 sink1"])
    monkeypatch.setattr(grid, "TRAINED", ["s2 sink1"])
    arguments = ["grid.py", str(tiny_model_directory()), "--texts", str(tmp_path / "texts"), "--tokens", "128"]
    arguments += ["--steps", "2", "--seeds", "0", "--out", str(tmp_path / "rows")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert grid.main() == 0
    [file] = (tmp_path / "rows").glob("*.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["before"] * 6 + ["train"] * 2
    losses = {row["pattern"]: row["loss"] for row in rows if row["kind"] == "before" and row["dtype"] == "float32"}
    assert len(set(losses.values())) == 3
    texts = grid.Texts(tmp_path / "texts", AutoTokenizer.from_pretrained(tiny_model_directory()))
    tokens = texts.rows(4, 128, "validation", seed=0).cpu()
    own = AutoModelForCausalLM.from_pretrained(tiny_model_directory(), dtype=torch.float32).eval()
    assert losses["full"] == pytest.approx(own(input_ids=tokens, labels=tokens).loss.item(), abs=1e-3)
    for row in rows[6:]:
        assert len(row["gradient_norms"]) == len(row["training_losses"]) == 2
        assert row["loss_own_pattern"][0] == pytest.approx(losses["s2 sink1"], abs=1)
        assert 0 <= row["passkey"] <= 1
    grid.main()
    assert len(file.read_text().splitlines()) == len(rows)


@pytest.mark.parametrize("pattern", ["full", "rows", "s2", "s2 sink1", "no shift sink1", "s2 sink1 full3"])
def test_patterns_are_what_their_names_say(pattern: str, load) -> None:
    from longlora.attention import attend_in_segments
    from longlora.attention.reference import s2_mask

    patterns = load("_patterns")
    patterns.follow(pattern, 12, 4)
    plain, _, interval = pattern.partition(" full")
    name, _, sinks = plain.partition(" sink")
    eye = torch.eye(12, dtype=torch.float64)[None, None].expand(1, 4, 12, 12)
    seen = attend_in_segments(torch.zeros_like(eye), torch.zeros_like(eye), eye, patterns._cuts[0]) > 0  # (1, H, T, T)
    whole = {"group_size": 100, "cu_seqlens": torch.tensor([0, 12])} if name == "full" else {"group_size": 4}
    expected = s2_mask(eye, sink_tokens=int(sinks or 0), **whole)
    if name in ("rows", "no shift"):
        expected = expected[:, :1].expand(1, 4, 12, 12)
    assert torch.equal(seen, expected)
    if interval:
        last = attend_in_segments(torch.zeros_like(eye), torch.zeros_like(eye), eye, patterns._cuts[2]) > 0
        assert len(patterns._cuts) == 3 and torch.equal(last, s2_mask(eye, group_size=100).expand(1, 4, 12, 12))


def test_a_finish_is_full_attention_for_the_last_steps(load) -> None:
    patterns = load("_patterns")
    follows = {}
    for progress in (0.0, 19 / 24, 20 / 24, 23 / 24):
        patterns.follow("s2 sink1 finish20", 12, 4, progress=progress)
        follows[progress] = [(cuts.group_size, cuts.sink_tokens) for cuts in patterns._cuts]
    assert list(follows.values()) == [[(4, 1)], [(4, 1)], [(None, 0)], [(None, 0)]]


def test_the_cost_is_a_ratio_of_pairs(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = load("cost")
    monkeypatch.setattr(sys, "argv", ["cost.py", "--lengths", "64", "--pairs", "3", "--out", str(tmp_path / "c.jsonl")])
    assert cost.main() == 0
    [row] = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert row["pairs"] == 3 and row["quartiles"][0] <= row["ratio"] <= row["quartiles"][2]
