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
    savers         recipe keys that differ from their defaults: those of `SAVERS`, with their values
    steps          optimizer steps that were done; with 1, the optimizer's state came after the peak
    allocated_gib  torch.cuda.max_memory_allocated()
    reserved_gib   torch.cuda.max_memory_reserved()
    step_s         median seconds of a step, the first left out; null where none was timed
    step_s_above   where no step came to its end: seconds after which it had not
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from longlora.planner import GIB, GPUS, PlannedRun, activations, compute, find_architecture, find_gpu, memory
from longlora.planner.compute import plan_duration, row_flops
from longlora.planner.memory import plan_memory

TOLERANCE = 0.10
FILES = sorted((Path(__file__).parent / "measured").glob("*.jsonl"))
ROWS = [json.loads(line) for path in FILES for line in path.read_text(encoding="utf-8").splitlines()]
TIMED = [row for row in ROWS if row["step_s"]]
SAVERS = {
    "tiled_mlp": "tiled_mlp",
    "activation_offloading": "offload_checkpoints",
    "gradient_checkpointing": "gradient_checkpointing",
    "chunked_loss": "chunked_loss",
    "tuning": "tuning",
}


def name(row: dict[str, Any]) -> str:
    savers = " ".join(f"{key}={value}" for key, value in row["savers"].items())
    return f"{row['card']}, {row['layers']} layers, {row['tokens']} tokens, {row['pattern']} {savers}"


def planned(row: dict[str, Any]) -> PlannedRun:
    return PlannedRun(
        architecture=replace(find_architecture(row["model"]), num_layers=row["layers"]),
        context_length=row["tokens"],
        attention=row["pattern"],
        accumulation_steps=1,
        steps=1,
        **{SAVERS[key]: value for key, value in row["savers"].items()},
    )


def allocated_and_reserved(row: dict[str, Any]) -> tuple[float, float]:
    """In GiB, as planned; after a single step without the optimizer's state, which is made at its end."""
    plan = plan_memory(planned(row))
    allocated = plan.allocated
    if row["steps"] == 1:
        allocated = plan.moments[memory.LAYER] - next(item.bytes for item in plan.items if item.name == "optimizer")
    return allocated / GIB, allocated * (1 + memory.FRAGMENTATION) / GIB


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_memory_is_what_was_measured(row: dict[str, Any]) -> None:
    allocated, reserved = allocated_and_reserved(row)
    assert allocated == pytest.approx(row["allocated_gib"], rel=TOLERANCE)
    assert reserved == pytest.approx(row["reserved_gib"], rel=TOLERANCE)


@pytest.mark.parametrize("row", TIMED, ids=name)
def test_a_step_takes_as_long_as_was_measured(row: dict[str, Any]) -> None:
    assert plan_duration(planned(row), find_gpu(row["card"])).seconds == pytest.approx(row["step_s"], rel=TOLERANCE)


def test_a_step_that_was_cut_short_would_have_gone_on() -> None:
    cut = [row for row in ROWS if "step_s_above" in row]
    assert cut
    for row in cut:
        assert plan_duration(planned(row), find_gpu(row["card"])).seconds > row["step_s_above"]


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (activations, "NORM_GRADIENT_BYTES", 8),
        (memory, "FINITE_CHECK_BYTES", 0),
        (memory, "FRAGMENTATION", 0.25),
        (activations, "layer_input", lambda run: 16 * run.architecture.hidden_size),
    ],
)
def test_a_wrong_formula_misses_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: Any
) -> None:
    monkeypatch.setattr(module, name, value)
    errors = [
        abs(planned / row[key] - 1)
        for row in ROWS
        for planned, key in zip(allocated_and_reserved(row), ("allocated_gib", "reserved_gib"), strict=True)
    ]
    assert max(errors) > TOLERANCE


def test_one_h100s_efficiency_is_the_best_fit_to_its_steps() -> None:
    """Least squares of relative errors: two parts of the peak, to a whole per cent, and a step's own seconds."""
    rows = [row for row in TIMED if find_gpu(row["card"]) is GPUS["h100-80gb"]]
    counts, unit = [row_flops(planned(row)) for row in rows], GPUS["h100-80gb"].peak_flops
    seconds = torch.tensor([[row["step_s"]] for row in rows], dtype=torch.float64)
    parts = torch.tensor([[c.linear / unit, c.attention / unit, 1.0] for c in counts], dtype=torch.float64) / seconds
    linear, attention, step = torch.linalg.lstsq(parts, torch.ones_like(seconds)).solution.flatten().tolist()
    efficiency = GPUS["h100-80gb"].efficiency(1)
    assert [round(1 / linear, 2), round(1 / attention, 2)] == [efficiency.linear, efficiency.attention]
    assert step == pytest.approx(compute.STEP_SECONDS, abs=0.001)
