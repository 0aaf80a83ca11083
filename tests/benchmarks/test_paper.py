"""The grid of the paper's ablations: its rows lie and cost as they say, and the page says what the rows say."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from longlora.models.grouping import Grouping, grouping_of, set_grouping

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "benchmarks" / "paper"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Load a script of the folder as a module."""
    for folder in (PAPER, ROOT / "benchmarks"):
        monkeypatch.syspath_prepend(str(folder))
    for name in ("_arms", "grid", "report", "cost", "bases"):  # other folders have scripts of the same names
        monkeypatch.delitem(sys.modules, name, raising=False)

    def module(name: str) -> ModuleType:
        loaded = importlib.import_module(name)
        monkeypatch.setitem(sys.modules, name, loaded)
        return loaded

    return module


def test_the_page_says_what_the_rows_say(load) -> None:
    report = load("report")
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = report.read_rows()
    others = report.other_tables()
    assert page == report.with_tables(page, report.tables(rows) | others)
    assert page.count("<!-- table: ") == page.count("<!-- end -->") == len(report.tables(rows) | others)
    changed = [{**row, "loss": {length: loss + 0.1 for length, loss in row["loss"].items()}} for row in rows]
    assert page != report.with_tables(page, report.tables(changed) | others)


SIX = {"arm": "S², one layer of six dense", "steps": 40}
UNSHIFTED = {"arm": "no shift, one layer of six dense", "steps": 40}
FINISH = {"arm": "S², last 40 % dense", "steps": 40}


@pytest.mark.parametrize(
    ("arm", "rival", "text"),
    [
        (SIX, {"arm": "full", "steps": 20}, "0.019 ± 0.014"),
        (SIX, {"arm": "full", "steps": 30}, "+0.001 ± 0.008"),
        (SIX, {"arm": "full", "steps": 40}, "(0.0100 ± 0.0008"),
        (SIX, {"arm": "S², every third layer dense", "steps": 40}, "0.001 ± 0.001"),
        (SIX, {"arm": "S², first 40 % dense", "steps": 40}, "0.002 ± 0.002"),
        (SIX, {"arm": "rows of g, last 40 % dense", "steps": 40}, "0.007 ± 0.011"),
        (UNSHIFTED, SIX, "0.0025 ± 0.0021"),
        (UNSHIFTED, {"arm": "full", "steps": 20}, "0.022 ± 0.015"),
        (UNSHIFTED, {"arm": "full", "steps": 30}, "0.002 ± 0.008"),
        (UNSHIFTED, {"arm": "full", "steps": 40}, "(0.0085 ± 0.0040"),
        (FINISH, {"arm": "full", "steps": 30}, "0.024 ± 0.006"),
        (FINISH, {"arm": "full", "steps": 20}, "+0.004 ± 0.012"),
    ],
)
def test_the_text_says_what_the_rows_say(load, arm: dict[str, Any], rival: dict[str, Any], text: str) -> None:
    report = load("report")
    common = {"positions": "yarn", "learning_rate": report.RATE}
    measured = report._interval(report.paired(report.read_rows(), arm | common, rival | common))
    mean, half_width = (float(number) for number in measured.split(" ± "))
    digits = len(text.rpartition(".")[2])
    assert f"{abs(mean):.{digits}f} ± {half_width:.{digits}f}" == text.lstrip("+(")
    assert text in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_rows_are_all_cells_of_the_grid_and_of_one_base(load) -> None:
    grid = load("grid")
    rows = [json.loads(line) for line in (PAPER / "results" / "tiny.jsonl").read_text().splitlines()]
    cells = list(grid.cells())
    assert len(cells) == len(set(cells))
    keys = [grid.Cell(**{name: row[name] for name in grid.Cell.__dataclass_fields__}) for row in rows]
    assert set(keys) <= set(cells) and len(keys) == len(set(keys))
    assert {row["base"] for row in rows} == {grid.digest_of("tiny")}


def test_arms_see_the_rows_they_name(load) -> None:
    arms = load("_arms")
    rows = [{"input_ids": [number] * 1024, "seq_lengths": [300, 724]} for number in range(50)]
    recall = [{"input_ids": [-1] * 1024, "seq_lengths": [1024]}]
    laid_out = {
        name: arms.lay_out(arm, Dataset.from_list(rows), Dataset.from_list(recall), arms.TINY, steps=5, seed=3)
        for name, arm in arms.ARMS.items()
    }
    full, cut = laid_out["full"], laid_out["no shift, last 40 % dense"]
    assert full["input_ids"] == laid_out["S²"]["input_ids"] == cut["input_ids"]
    assert cut["seq_lengths"][:12] == [[256, 44, 212, 256, 256]] * 12
    assert cut["seq_lengths"][12:] == full["seq_lengths"][12:] == [[300, 724]] * 8
    pieces = laid_out["rows of g, last 40 % dense"]
    assert pieces["input_ids"][12:] == full["input_ids"][12:]
    assert all(len(set(ids)) > 1 and len(ids) == 1024 for ids in pieces["input_ids"][:12])
    assert all(sum(lengths) == 1024 and max(lengths) <= 256 for lengths in pieces["seq_lengths"][:12])
    assert sum(ids[0] == -1 for ids in laid_out["full, with recall text"]["input_ids"]) == 5


def test_texts_lie_in_folders_of_splits_or_are_python_files(load, tmp_path: Path) -> None:
    sizes = load("_arms").Sizes(texts=tmp_path)
    for number in range(200):
        (tmp_path / f"{number}.py").write_text("1")
    (tmp_path / "empty.py").touch()
    train, held_out = sizes.files("train"), sizes.files("validation")
    assert len(train) + len(held_out) == 200 and not set(train) & set(held_out) and 3 < len(held_out) < 30
    for split in ("train", "validation"):
        (tmp_path / "books" / split).mkdir(parents=True)
        (tmp_path / "books" / split / "one.txt").write_text("1")
        assert sizes.files(split) == [tmp_path / "books" / split / "one.txt"]


def test_costs_are_the_planners_and_of_the_layout(load) -> None:
    arms = load("_arms")

    def cost(name: str, steps: int = 10):
        arm = arms.ARMS[name]
        recipe = arms.recipe_of(arm, arms.TINY, positions="yarn", steps=steps, learning_rate=1e-3, seed=0)
        return arms.cost(arm, recipe, arms.TINY)

    full = cost("full")
    assert cost("full", 5).attention == full.attention / 2
    alike = {name for name, arm in arms.ARMS.items() if (arm.tuning, arm.rank) == ("lora+", arms.ARMS["full"].rank)}
    assert {cost(name).linear for name in alike} == {full.linear}
    assert cost("S², rank 8").linear < full.linear < cost("S², rank 128").linear
    assert cost("full, LoRA alone").linear < full.linear
    # Pairs of one head and row: a triangle of 1,024, four of 256, and for shifted heads three of 256 and two of 128.
    whole, group, half = (tokens * (tokens + 1) / 2 for tokens in (1024, 256, 128))
    shares = {"no shift": 4 * group, "S²": (4 * group + 3 * group + 2 * half) / 2}
    for name, pairs in shares.items():
        assert cost(name).attention / full.attention == pytest.approx(pairs / whole)
    assert cost("S², groups of 128").attention < cost("S²").attention < cost("S², groups of 512").attention
    finished = 0.6 * shares["S²"] / whole + 0.4
    assert cost("S², last 40 % dense").attention / full.attention == pytest.approx(finished)
    for name in ("S², first 40 % dense", "S², two steps of five dense"):
        assert cost(name).attention / full.attention == pytest.approx(finished)
    grown = ["S², groups of 128", "S²", "S², groups of 512", "full"]
    assert cost("S², growing groups", 8).attention == pytest.approx(sum(cost(name, 2).attention for name in grown))
    half_of_layers = 0.5 * shares["S²"] / whole + 0.5
    assert cost("S², every other layer dense").attention / full.attention == pytest.approx(half_of_layers)


def test_phases_set_the_groups_of_each_step(load) -> None:
    arms = load("_arms")

    def group_size(name: str, step: int) -> int | None:
        layer = torch.nn.Linear(1, 1)
        set_grouping(layer, Grouping(group_size=256))
        phases = arms.Phases(arms.ARMS[name], arms.TINY)
        phases.on_step_begin(None, SimpleNamespace(global_step=step, max_steps=10), None, layer)
        grouping = grouping_of(layer)
        assert grouping is not None
        return grouping.group_size

    assert [group_size("S², first 40 % dense", step) for step in (0, 3, 4, 9)] == [None, None, 256, 256]
    assert [group_size("S², growing groups", step) for step in (0, 3, 5, 9)] == [128, 256, 512, None]
    assert [group_size("S², two steps of five dense", step) for step in range(5)] == [256, 256, None, 256, None]
    assert group_size("S²", 0) == 256


def test_costs_of_a_step_are_the_planners(load) -> None:
    cost = load("cost")
    rows = [json.loads(line) for line in (PAPER / "results" / "cost.jsonl").read_text().splitlines()]
    assert rows and {row["shape"] for row in rows} <= set(cost.LENGTHS)
    for row in rows:
        counted = {name: cost.operations(cost.shape(row["shape"]), row["tokens"], name) for name in cost.PATTERNS}
        assert row["operations"] == counted
    cost.make_run(cost.shape("tiny"), 64, "s2, 1 sink token")()


def test_a_base_that_looks_at_its_first_token_alone_has_all_its_attention_there(load, monkeypatch) -> None:
    bases = load("bases")
    assert 0 < bases.measure("tiny", 96, 1)["share"] < 0.1

    def softmax(scores: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.zeros_like(scores).index_fill_(-1, torch.tensor([0]), 1.0)

    monkeypatch.setattr(torch.nn.functional, "softmax", softmax)
    assert bases.measure("tiny", 96, 1)["share"] == 1
