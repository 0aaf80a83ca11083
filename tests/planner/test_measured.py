"""The plan against steps of longlora itself on a GPU: memory and time within 10 %.

Every line of `measured/*.jsonl` is one run, LoRA+ in bfloat16 with one row of one document a step. To add runs, add
lines; a file of a new card needs no change here. Fields:

    card           what the driver calls the GPU
    date           when it was measured
    versions       of torch, transformers, peft and trl
    model          a name whose shape the planner knows
    layers         how many layers of that shape the model had
    tokens         of the row
    pattern        attention: "s2", in groups of a quarter, or "full"
    kernel         what ran it: a backend of `longlora.attention`, or "sdpa", the model's own attention. Where `auto`
                   would take another today, `FORMER_KERNELS` says which part of the peak it reached
    savers         recipe keys that differ from their defaults: those of `SAVERS`, with their values
    steps          optimizer steps that were done; with 1, the optimizer's state came after the peak
    finite_check   "whole" where gradients were still looked at by `isfinite`, which held 7 bytes for each number of the
                   largest; absent where they are not
    allocated_gib  torch.cuda.max_memory_allocated()
    reserved_gib   torch.cuda.max_memory_reserved(), on a card with room to spare
    step_s         median seconds of a step, the first left out; null where none was timed
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from longlora.planner import activations, compute, memory
from longlora.planner.architecture import find_architecture
from longlora.planner.compute import GIB, Gpu, find_gpu, head_pairs, plan_duration, row_flops, traffic_bytes
from longlora.planner.job import PlannedRun
from longlora.planner.memory import plan_memory

TOLERANCE = 0.10
FILES = sorted((Path(__file__).parent / "measured").glob("*.jsonl"))
ROWS = [json.loads(line) for path in FILES for line in path.read_text(encoding="utf-8").splitlines()]
TIMED = [row for row in ROWS if row["step_s"]]
EIGHT_B = ("NVIDIA H200", 32, 32768)
FORMER_KERNELS = {"varlen": 0.37}
WHOLE_CHECK_BYTES = 7
SAVERS = {
    "tiled_mlp": "tiled_mlp",
    "activation_offloading": "offload_checkpoints",
    "gradient_checkpointing": "gradient_checkpointing",
    "chunked_loss": "chunked_loss",
    "tuning": "tuning",
}


def page(name: str) -> str:
    """The text of a page, with its lines joined."""
    return (Path(__file__).parents[2] / name).read_text(encoding="utf-8").replace("\n", " ")


def name(row: dict[str, Any]) -> str:
    savers = " ".join(f"{key}={value}" for key, value in row["savers"].items())
    attention = f"{row['pattern']} by {row['kernel']}"
    return f"{row['card']}, {row['layers']} layers, {row['tokens']} tokens, {attention} {savers}"


def planned(row: dict[str, Any]) -> PlannedRun:
    return PlannedRun(
        architecture=replace(find_architecture(row["model"]), num_layers=row["layers"]),
        context_length=row["tokens"],
        attention=row["pattern"],
        accumulation_steps=1,
        steps=1,
        **{SAVERS[key]: value for key, value in row["savers"].items()},
    )


def allocated(row: dict[str, Any]) -> float:
    """In GiB, as planned; after a single step without the optimizer's state, which is made at its end."""
    run = planned(row)
    plan = plan_memory(run)
    if row["steps"] == 1:
        optimizer = next(item.bytes for item in plan.items if item.name == "optimizer")
        return (plan.moments[memory.LAYER] - optimizer) / GIB
    moments = dict(plan.moments)
    if row.get("finite_check") == "whole":
        moments[memory.STEP] += WHOLE_CHECK_BYTES * run.architecture.parameters.embeddings
    return max(moments.values()) / GIB


def gpu_of(row: dict[str, Any]) -> Gpu:
    """The card, with what the row's kernel reached of its peak."""
    gpu = find_gpu(row["card"])
    if row["kernel"] not in FORMER_KERNELS:
        return gpu
    return replace(gpu, by_itself=replace(gpu.efficiency(1), attention=FORMER_KERNELS[row["kernel"]]))


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_memory_is_what_was_measured(row: dict[str, Any]) -> None:
    assert allocated(row) == pytest.approx(row["allocated_gib"], rel=TOLERANCE)


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_torch_reserves_no_more_than_is_said_where_there_is_room(row: dict[str, Any]) -> None:
    assert row["allocated_gib"] <= row["reserved_gib"] <= (1 + memory.ROOM_TO_SPARE) * allocated(row)


@pytest.mark.parametrize("row", TIMED, ids=name)
def test_a_step_takes_as_long_as_was_measured(row: dict[str, Any]) -> None:
    assert plan_duration(planned(row), gpu_of(row)).seconds == pytest.approx(row["step_s"], rel=TOLERANCE)


def test_the_pages_say_what_was_measured_and_planned() -> None:
    pages = ("README.md", "docs/how-it-works.md", "docs/plan.md", "docs/memory.md")
    readme, explained, table, saved = map(page, pages)
    whole = {row["pattern"]: row for row in ROWS if (row["card"], row["layers"], row["tokens"]) == EIGHT_B}
    s2, full = whole["s2"], whole["full"]
    drafted = plan_duration(replace(planned(s2), shift=False, full_attention_interval=6), gpu_of(s2)).seconds
    assert f"one H200, {s2['allocated_gib']:.1f} GiB and {s2['step_s']:.2f} s per step in the paper's pattern" in readme
    for text in (readme, explained):
        assert f"{s2['step_s']:.2f} s per step in the paper's pattern, against {full['step_s']:.2f} s with full" in text
        assert f"{drafted:.1f} s by the plan for the" in text
    for row in ROWS:
        if row["card"] == EIGHT_B[0]:
            memory = f"{row['allocated_gib']:.2f} / {allocated(row):.2f} | {row['reserved_gib']:.2f} |"
            assert f"| {row['layers']}, {row['tokens']:,}, " in table and memory in table
            if row["pattern"] == "s2":
                assert f"{row['allocated_gib']:.1f} GiB | {row['reserved_gib']:.1f} |" in saved
    for row in (s2, full):
        assert f" | {row['step_s']:.2f} / {plan_duration(planned(row), gpu_of(row)).seconds:.2f} |" in table


def test_the_page_says_what_groups_cost() -> None:
    shape = replace(find_architecture("meta-llama/Llama-3.1-8B"), num_layers=24)
    runs = {
        "`shift: false`, `full_attention_interval: 6`": {"shift": False, "full_attention_interval": 6},
        "neither": {},
        "`pattern: full`": {"attention": "full"},
    }
    pairs = {
        name: head_pairs(PlannedRun(architecture=shape, context_length=32768, **changes))
        for name, changes in runs.items()
    }
    for name, count in pairs.items():
        share = f"{count / pairs['`pattern: full`']:.0%}".replace("%", " %")
        assert f"| {name} | {share} |" in page("docs/how-it-works.md")


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (activations, "NORM_GRADIENT_BYTES", 8),
        (activations, "layer_input", lambda run: 16 * run.architecture.hidden_size),
        (activations, "shared_by_layers", lambda run: 16 * run.architecture.hidden_size),
    ],
)
def test_a_wrong_formula_misses_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: Any
) -> None:
    monkeypatch.setattr(module, name, value)
    assert max(abs(allocated(row) / row["allocated_gib"] - 1) for row in ROWS) > TOLERANCE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PASS_BYTES", 0),
        ("STEP_SECONDS", 0.1),
        ("ATTENTION_BACKWARD", 6.0),
        ("segment_pairs", lambda tokens, group, first: tokens * (tokens + 1) // 2),
    ],
)
def test_a_wrong_formula_misses_the_seconds(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    monkeypatch.setattr(compute, name, value)
    errors = [plan_duration(planned(row), gpu_of(row)).seconds / row["step_s"] - 1 for row in TIMED]
    assert max(map(abs, errors)) > TOLERANCE


def test_what_one_gpu_reaches_is_the_best_fit_to_its_steps() -> None:
    """Least squares of relative errors over all cards: parts of the peak to a whole per cent, bytes and seconds."""
    kernels = sorted(FORMER_KERNELS)
    parts = []
    for row in TIMED:
        run, gpu = planned(row), find_gpu(row["card"])
        flops = row_flops(run)
        attention = [0.0] * (1 + len(kernels))
        attention[1 + kernels.index(row["kernel"]) if row["kernel"] in kernels else 0] = flops.attention
        traffic = traffic_bytes(run) / compute.PASS_BYTES / gpu.bytes_per_second
        parts.append([flops.linear / gpu.peak_flops, *(x / gpu.peak_flops for x in attention), traffic, 1.0])
    seconds = torch.tensor([[row["step_s"]] for row in TIMED], dtype=torch.float64)
    scaled = torch.tensor(parts, dtype=torch.float64) / seconds
    solution = torch.linalg.lstsq(scaled, torch.ones_like(seconds)).solution.flatten().tolist()
    *inverse, pass_bytes, step_seconds = solution
    efficiency = find_gpu("h200").efficiency(1)
    assert find_gpu("h100").efficiency(1) == efficiency
    expected = [efficiency.linear, efficiency.attention, *(FORMER_KERNELS[kernel] for kernel in kernels)]
    assert [round(1 / value, 2) for value in inverse] == expected
    assert pass_bytes == pytest.approx(compute.PASS_BYTES, abs=1)
    assert step_seconds == pytest.approx(compute.STEP_SECONDS, abs=0.001)
