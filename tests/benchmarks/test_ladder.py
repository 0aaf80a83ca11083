"""The ladder of GPU measurements runs on a CPU, leaves its rows whatever happens, and resumes where it ended."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

LADDER = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    """Import a module of the ladder."""
    for folder in (LADDER.parents[1] / "scripts", LADDER.parent / "paper", LADDER.parent, LADDER):
        monkeypatch.syspath_prepend(str(folder))
    for name in ("_arms", "grid", "bases", "_base", "_schedules"):  # other folders have scripts of the same names
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


@pytest.fixture
def session(module, tmp_path: Path):
    return module("_session").Session("trial", tmp_path, seconds=1000, dry=True)


def rows_of(session: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in session.path.read_text().splitlines()]


def environment(**more: str) -> dict[str, str]:
    paths = [str(LADDER), str(LADDER.parent), str(LADDER.parents[1] / "src"), *sys.path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | more


def test_a_failure_is_a_row_and_a_row_is_not_made_again(module, session, tmp_path: Path) -> None:
    calls = []

    def measure() -> dict[str, Any]:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        return {"ms": 3.0}

    session.run("first", {"tokens": 8}, measure)
    session.run("second", {"tokens": 16}, measure)
    again = module("_session").Session("trial", tmp_path, seconds=1000, dry=True)
    assert again.run("first", {"tokens": 8}, measure)["ms"] == 3.0
    assert again.run("second", {"tokens": 16}, measure)["error"] == "out of memory"
    assert len(calls) == 2
    first, second = rows_of(session)
    assert first["ms"] == 3.0 and first["tokens"] == 8 and first["torch"] and first["date"] and first["card"]
    assert second["message"] == "CUDA out of memory. Tried to allocate 2 GiB"


def test_a_lost_cuda_context_ends_the_step_after_its_row(session) -> None:
    def lose() -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(SystemExit, match="start the step again"):
        session.run("bad", {}, lose)
    assert rows_of(session)[0]["error"] == "RuntimeError"


def test_no_case_begins_after_the_time_and_one_at_work_leaves_its_row(module, tmp_path: Path) -> None:
    over = module("_session").Session("trial", tmp_path / "over", seconds=0, dry=True)
    with pytest.raises(module("_session").OutOfTime):
        over.run("first", {}, dict)
    script = (
        "import sys, time; from pathlib import Path; from _session import Session\n"
        "session = Session('trial', Path(sys.argv[1]), seconds=1, dry=True)\n"
        "stages = {'weights': 1.5}\n"
        "session.run('long', {'stages_s': stages}, lambda: time.sleep(600))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "cut")]
    subprocess.run(command, env=environment(), check=True, timeout=120)
    (path,) = (tmp_path / "cut").glob("trial-*-dry.jsonl")
    (row,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert row["interrupted"] and row["seconds"] >= 0.1 and row["stages_s"] == {"weights": 1.5}
    assert "long" not in module("_session").Session("trial", tmp_path / "cut", seconds=0, dry=True).rows


@pytest.mark.slow
def test_s2_is_compared_with_the_fastest_full_attention(module, session, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = module("_kernels")
    every = list(kernels.cases(dry=True, with_sinks=False))
    assert len({case.name for case in every if case.group_size}) > 10
    plain = [case for case in every if not case.packed][:5]  # three kernels of full attention, S² by two backends
    packed = [case for case in every if case.packed][:5]
    monkeypatch.setattr(kernels, "cases", lambda **_: [*plain, *packed])
    kernels.run_attention(session)
    rows = {row["case"]: row for row in rows_of(session)}
    sparse = rows["plain 4/2x16 256 s2 g64 sink0 auto"]
    assert sparse["fastest_full_ms"] == min(
        row["ms"] for name, row in rows.items() if "plain" in name and "full" in name and "ms" in row
    )
    assert sparse["ideal"] == pytest.approx((256 * 257 / 2) / ((4 * 2080 + 3 * 2080 + 2 * 528) / 2), abs=1e-3)
    assert sparse["share_of_ideal"] == pytest.approx(
        sparse["fastest_full_ms"] / sparse["ms"] / sparse["ideal"], abs=2e-3
    )
    assert all("ideal" in row for name, row in rows.items() if "packed" in name and "s2" in name and "ms" in row)


def test_documents_fill_a_packed_row_and_differ_each_time(module) -> None:
    kernels = module("_kernels")
    draws = kernels.random.Random(0)
    first, second = (kernels.document_lengths(50_000, draws) for _ in range(2))
    assert sum(first) == sum(second) == 50_000 and first != second and min(first) > 0
    assert 1000 < 50_000 / len(first) < 4000


def test_a_training_step_beside_its_plan(module, session) -> None:
    training = module("_training")
    for case in [
        *islice(training.step_cases(dry=True), 1),
        training.Case(layers=1, tokens=256, attention="sdpa", steps=2),
    ]:
        training.attempt(case, session)
    profiled, plain = rows_of(session)
    assert profiled["planned_gib"] > 0 and len(profiled["step_s"]) == len(profiled["losses"]) == 3
    assert {"weights", "trainer", "to the first step", "first step"} <= set(profiled["stages_s"])
    assert any("load_for_training" in line for line in profiled["profile"])
    assert plain["losses"][0] == pytest.approx(torch.log(torch.tensor(2048.0)).item(), rel=0.02)  # random weights


def test_the_longest_context_is_looked_for_by_doubling(module, session, monkeypatch: pytest.MonkeyPatch) -> None:
    training = module("_training")
    monkeypatch.setattr(
        training,
        "attempt",
        lambda case, session: tried.append(case.tokens) or ({"error": "out"} if case.tokens > 256 else {}),
    )
    tried: list[int] = []
    training.run_longest(session, start=0)
    assert tried == [256, 512]


def test_failed_tests_are_written_down_as_they_come(tmp_path: Path) -> None:
    tests = tmp_path / "test_trial.py"
    tests.write_text(
        "import time\n"
        "def test_good(): pass\n"
        "def test_bad(): assert [1, 2] == [1, 3], 'not the same'\n"
        "def test_slow(): time.sleep(60)\n"
    )
    rows = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "_failing_tests", "--rootdir", str(tmp_path), str(tests)]
    variables = environment(LADDER_FAILURES=str(rows), LADDER_TEST_SECONDS="1")
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        variables.pop(name, None)
    done = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    bad, slow, end = [json.loads(line) for line in rows.read_text().splitlines()]
    assert bad["test"].endswith("::test_bad") and "not the same" in bad["error"]
    assert "took more than 1 s" in slow["error"]
    assert end["counts"] == {"passed": 1, "failed": 2} and end["finished"]


def test_an_arm_has_as_many_steps_as_its_budget_pays(module) -> None:
    schedules = module("_schedules")

    def steps(arm: str, counted: str = "attention", share: float = 1.0) -> int:
        run = schedules.Run(arm=arm, budget=40, share=share, seed=0)
        return schedules.steps_within(run, module("_arms").TINY, counted)

    # Pairs of one head and row: a triangle of 1,024, four of 256, and for shifted heads three of 256 and two of 128.
    whole, group, half = (tokens * (tokens + 1) / 2 for tokens in (1024, 256, 128))
    s2, pieces = (7 * group + 2 * half) / 2 / whole, 4 * group / whole
    assert steps("full") == steps("full", "all") == 40
    assert steps("full", share=0.25) == 10 and steps("full", share=0.001) == 1
    assert steps("S²") == steps("S², 1 sink token") == round(40 / s2)
    assert steps("rows of g") == round(40 / pieces)
    assert steps("S², last 40 % dense") == round(40 / (0.6 * s2 + 0.4))
    assert steps("rows of g, last 20 % dense") == round(40 / (0.8 * pieces + 0.2))
    assert all(40 < steps(arm, "all") < steps(arm) for arm in schedules.ARMS if arm != "full")


def test_the_page_has_the_steps_that_a_budget_pays_at_the_large_size(module, tmp_path: Path) -> None:
    schedules, arms = module("_schedules"), module("_arms")
    LlamaConfig(
        vocab_size=2048,
        max_position_embeddings=schedules.LARGE.base_context,
        architectures=["LlamaForCausalLM"],
        **schedules.LARGE_BASE.shape,
    ).save_pretrained(tmp_path)
    sizes = dataclasses.replace(schedules.LARGE, base=str(tmp_path))
    page = (LADDER.parents[1] / "docs" / "gpu.md").read_text(encoding="utf-8")
    for arm in schedules.ARMS:
        if "sink" in arm:
            continue
        run = schedules.Run(arm=arm, budget=40, seed=0)
        equal, all_equal = (schedules.steps_within(run, sizes, counted) for counted in ("attention", "all"))
        name = "S²-Attn, with or without a sink token" if arm == "S²" else arm.replace("S²,", "S²-Attn,")
        assert f"| {name} | {equal} | {all_equal} |" in page
    recipe = arms.recipe_of(arms.ARMS["full"], sizes, positions="yarn", steps=1, learning_rate=1e-3, seed=0)
    dense = arms.row_costs(arms.ARMS["full"], recipe, sizes)[1]
    assert f"Attention is {dense.attention / sum(dense):.0%} of".replace("%", " %") in page


def test_the_pages_say_what_the_extension_of_a_real_model_measured() -> None:
    lines = (LADDER / "results" / "extend-h200.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["arm"]: row for row in map(json.loads, lines)}
    full, grouped, longest = rows["full"], rows["S², 1 sink token"], "65536"
    reached = {arm: row["perplexity"].get(longest) for arm, row in rows.items()}
    pages = (LADDER.parents[1] / "README.md", LADDER.parents[1] / "docs" / "gpu.md")
    readme, page = (path.read_text(encoding="utf-8").replace("\n", " ") for path in pages)
    assert (
        f"went from 32,768 to 65,536 tokens in {grouped['seconds']:.0f} s on one H200, with S²-Attn and a sink token: "
        f"perplexity {reached[grouped['arm']]:.2f} there, against {reached['full']:.2f} after {full['seconds']:.0f} s "
        f"of full attention and {reached['positions only']:.2f} with new positions alone"
    ) in readme
    ratios = reached[grouped["arm"]] / reached["full"] - 1, grouped["seconds"] / full["seconds"]
    assert f"ends {100 * ratios[0]:.1f} % behind full attention in {100 * ratios[1]:.0f} % of the time" in page
    for row in rows.values():
        cells = [f"{row['perplexity'][length]:.2f}" for length in row["perplexity"]]
        assert all(cell in page for cell in cells)


def test_schedules_come_cheapest_first_and_seed_by_seed(module) -> None:
    schedules = module("_schedules")
    found = list(schedules.runs((120, 40), seeds=2))
    assert len({run.name for run in found}) == len(found) == 2 * 2 * (len(schedules.ARMS) + len(schedules.STOPPED))
    assert [(run.budget, run.seed) for run in found] == sorted((run.budget, run.seed) for run in found)
    assert {run.arm for run in found} <= set(module("_arms").ARMS)
    assert schedules.LARGE.lengths == [2048, 4096, 8192, 16384] and module("_arms").TINY.lengths == [256, 512, 1024]


def test_a_schedule_that_would_not_end_in_time_is_left_to_the_next_call(module) -> None:
    schedules = module("_schedules")
    row = {"arm": "S²", "counted": "all", "budget": 40, "share": 1.0, "wall_s": 30.0, "seconds_steps": 20.0}
    session = SimpleNamespace(rows={"first": row}, seconds_left=100.0)

    def refuse(arm: str, budget: int, counted: str = "all") -> None:
        schedules.refuse_what_takes_too_long(session, "next", schedules.Run(arm=arm, budget=budget, seed=0), counted)

    refuse("S²", 160)
    refuse("full", 400)
    refuse("S²", 400, "attention")
    with pytest.raises(module("_session").OutOfTime, match="would take about 210 s, and 100 are left"):
        refuse("S²", 400)


def test_rows_of_made_up_documents_grow_up_to_the_context(module) -> None:
    phase = module("_pretraining").Phase("recall", 1200, 2e-3, 20, 0.5, first_rows=128)
    assert [phase.row_tokens(step, 256) for step in (0, 599, 600, 1199)] == [128, 128, 256, 256]
    assert [phase.row_tokens(step, 2048) for step in range(0, 1200, 240)] == [128, 256, 512, 1024, 2048]


def test_a_base_whose_pretraining_was_cut_short_goes_on_to_the_same_weights(module, tmp_path: Path) -> None:
    base, schedules = module("_base"), module("_schedules")
    path = tmp_path / "texts.py"
    path.write_text("\n".join(f"the quick brown value of name {number} is {number * 7}" for number in range(900)))
    written: list[dict[str, Any]] = []

    def pretrain(name: str, seconds_left: float) -> Path | None:
        session = SimpleNamespace(seconds_left=seconds_left, write=lambda case, **values: written.append(values))
        files = {"train": [path], "validation": [path]}
        return base.pretrain(schedules.DRY_BASE, files, tmp_path / name, session, seconds=0)

    assert pretrain("cut", 0) is None and pretrain("cut", 0) is None and not written
    resumed, whole = pretrain("cut", 1000), pretrain("whole", 1000)
    assert resumed and whole
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [row["tokens"] for row in written] == [2048, 2048] and written[0]["recall"] == written[1]["recall"]
    assert pretrain("whole", 0) == whole and len(written) == 2  # it is there
    (tmp_path / "whole" / "checkpoint.pt").unlink()
    assert pretrain("whole", 0) is None and not whole.exists()  # it trains anew, and an older model is not taken for it


@pytest.mark.slow  # a minute and more each
@pytest.mark.parametrize("step", ["tests", "attention", "steps", "longest", "extend", "schedules"])
def test_the_script_runs_dry_to_its_end(step: str, tmp_path: Path) -> None:
    command = [sys.executable, str(LADDER / "ladder.py"), step, "--dry", "--seconds", "400", "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (rows,) = [path for path in tmp_path.glob("*.jsonl") if "progress" not in path.name]
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert found and not [row for row in found if row.get("interrupted")]
