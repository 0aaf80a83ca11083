"""The plan as a whole: verdict, longest context, advice, and how they are shown."""

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from longlora.planner.architecture import find_architecture
from longlora.planner.compute import GIB, GPUS
from longlora.planner.job import PlannedRun
from longlora.planner.memory import plan_memory
from longlora.planner.plan import Plan, longest_context, make_plan
from longlora.planner.plan_report import plan_to_dict, print_plan


def plan(run: PlannedRun, gib: float, gpu: str | None = None) -> Plan:
    return make_plan(run, memory_bytes=int(gib * GIB), gpu=GPUS[gpu] if gpu else None)


def shown(plan: Plan, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_plan(plan, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def heavy(llama_7b: Any) -> PlannedRun:
    """Without any of the optimizations."""
    return PlannedRun(
        architecture=llama_7b,
        context_length=32768,
        tuning="lora",
        chunked_loss=False,
        gradient_checkpointing=False,
        batch_size=4,
        accumulation_steps=2,
    )


def test_fits_is_about_the_sum(llama_7b: Any) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=8192)
    total = plan_memory(run).total
    assert make_plan(run, memory_bytes=total).fits
    assert not make_plan(run, memory_bytes=total - 1).fits


@pytest.mark.parametrize(
    ("part", "verdict"), [(1.2, "It fits, with"), (1.05, "It fits only just, with"), (0.9, "It does not fit:")]
)
def test_the_verdict_keeps_a_margin(llama_7b: Any, part: float, verdict: str) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=8192)
    found = make_plan(run, memory_bytes=int(part * plan_memory(run).total))
    assert verdict in shown(found)
    assert found.keeps_margin == (part == 1.2)
    assert ("keep 10% free" in shown(found)) == found.fits


@pytest.mark.parametrize(
    "changes",
    [
        {"four_bit": True},
        {"tuning": "lora"},
        {"tuning": "full"},
        {"dtype": "float32"},
        {"num_gpus": 2, "strategy": "fsdp2"},
        {"optimizer": "adamw_8bit"},
        {"gradient_checkpointing": False},
        {"chunked_loss": False},
    ],
)
def test_the_verdict_says_whether_such_a_run_was_measured(llama_7b: Any, changes: dict[str, Any]) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=8192)
    assert "Runs of this kind were measured (H100, H200): keep 10% free (14.0 GiB)" in shown(plan(run, 140))
    more = "30% free (42.0 GiB)" if {"four_bit", "gradient_checkpointing"} & set(changes) else "10% free (14.0 GiB)"
    assert f"Not measured on a GPU: keep {more}" in shown(plan(replace(run, **changes), 140))


def test_the_host_has_a_say(llama_7b: Any) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=65536, offload_checkpoints=True, tiled_mlp=4096)
    needed = plan_memory(run).host_total
    for there, fits in ((needed, True), (needed - 1, False)):
        found = make_plan(run, memory_bytes=80 * GIB, host_memory_bytes=there)
        assert (found.fits, found.fits_gpus) == (fits, True)
        assert plan_to_dict(found)["fits"] == fits
        assert ("but not the host" in shown(found)) != fits
    assert "most of it is layer inputs" in " ".join(shown(found).split())
    unknown = plan(run, 80)
    assert unknown.fits
    assert "give --host-memory to check" in " ".join(shown(unknown).split())


@pytest.mark.parametrize("gib", [24, 40, 80])
def test_the_longest_context_fits_and_the_next_does_not(llama_7b: Any, gib: int) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=8192, tuning="lora")
    longest = longest_context(run, gib * GIB)
    step = 1024 if longest >= 4096 else 64
    assert longest % step == 0
    assert plan_memory(replace(run, context_length=longest)).total <= gib * GIB
    assert plan_memory(replace(run, context_length=longest + step)).total > gib * GIB


def test_no_context_fits_where_the_weights_do_not(llama_7b: Any) -> None:
    found = plan(PlannedRun(architecture=llama_7b, context_length=8192), 10)
    assert found.longest_context == 0
    assert "longest context  none fits" in shown(found)


def test_a_fixed_group_does_not_stop_the_search(llama_7b: Any) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=32768, tuning="lora", group_size=8192)
    assert longest_context(run, 16 * GIB) < 8192


def test_advice_begins_with_what_costs_nothing_and_suffices(heavy: PlannedRun) -> None:
    found = plan(heavy, 40, "a100-80gb")
    assert not found.fits
    assert found.advice_suffices
    assert found.advice[-1].total_bytes <= 40 * GIB
    sums = [found.memory.total, *(advice.total_bytes for advice in found.advice)]
    assert sums == sorted(sums, reverse=True)
    assert "one row at a time" in " ".join(advice.change for advice in found.advice)
    assert not any("4 bits" in advice.change for advice in found.advice)


@pytest.mark.parametrize("gib", [12, 16, 24, 30, 48, 80, 140])
def test_nothing_is_advised_that_is_not_needed(heavy: PlannedRun, gib: int) -> None:
    found = plan(heavy, gib)
    if found.fits or not found.advice_suffices:
        return
    texts = [advice.change for advice in found.advice]
    changes: dict[str, dict[str, Any]] = {
        "chunked": {"chunked_loss": True},
        "one row at a time": {"batch_size": 1, "accumulation_steps": 8},
        "checkpointing": {"gradient_checkpointing": True},
        "host memory": {"offload_checkpoints": True, "gradient_checkpointing": True},
        "tiles": {"tiled_mlp": True},
        "4 bits": {"four_bit": True},
    }
    taken = [next(change for word, change in changes.items() if word in text) for text in texts]
    for left_out in taken:
        run = heavy
        for change in taken:
            if change is not left_out:
                run = replace(run, **change)
        assert plan_memory(run).total > gib * GIB, (texts, left_out)


def test_advice_names_its_price_in_time(heavy: PlannedRun) -> None:
    found = plan(replace(heavy, batch_size=1, context_length=65536), 48, "a100-80gb")
    prices = {advice.change.split(":")[0]: advice.slowdown for advice in found.advice}
    assert prices["gradient checkpointing"] == pytest.approx(1.3, abs=0.15)


def test_several_gpus_are_advised_to_share(llama_7b: Any) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=8192, tuning="full", strategy="ddp", num_gpus=8)
    found = plan(run, 80)
    assert "--strategy zero2" in found.advice[0].change
    assert found.advice_suffices
    assert found.advice[0].total_bytes == plan_memory(replace(run, strategy="zero2")).total


def test_where_nothing_helps_it_is_said() -> None:
    run = PlannedRun(architecture=find_architecture("meta-llama/Llama-2-70b-hf"), context_length=32768)
    found = plan(run, 24)
    assert not found.advice_suffices
    assert "Even so it does not fit" in shown(found)
    best = replace(run, four_bit=True, offload_checkpoints=True, tiled_mlp=True, tuning="lora")
    assert "No setting makes it fit" in shown(plan(best, 24))


def test_the_table_adds_up_and_fits_the_terminal(llama_7b: Any) -> None:
    found = plan(PlannedRun(architecture=llama_7b, context_length=32768, dense_finish=0.2), 80, "a100-80gb")
    text = shown(found)
    assert "It fits, with" in text
    assert "the last 20% full" in text
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines() if "%" in line and line[0] != " "]
    assert any(row[0] == "total" for row in rows)
    assert f"{found.memory.total / GIB:.1f}" in next(" ".join(row) for row in rows if row[0] == "total")
    assert "hours for 1,000 steps" in text
    assert "fitted to the paper's table 12" in " ".join(text.split())
    assert sum(item.bytes for item in found.memory.items) == found.memory.total
    room = 1.4 * found.memory.allocated / GIB
    assert f"up to {room:.1f} GiB if there is room" in " ".join(text.split())


def test_sink_tokens_are_shown_and_counted_where_there_are_any(llama_7b: Any) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=32768)
    with_sinks = replace(run, sink_tokens=4)
    assert "S²-Attn, 4 sink tokens" in shown(plan(with_sinks, 80))
    assert "S²-Attn, 1 sink token\n" in shown(plan(replace(run, sink_tokens=1), 80))
    assert "sink" not in shown(plan(run, 80))
    assert "sink" not in shown(plan(replace(with_sinks, attention="full"), 80))
    found, plain = (plan_to_dict(plan(either, 80, "h200")) for either in (with_sinks, run))
    assert (found["sink_tokens"], plain["sink_tokens"]) == (4, 0)
    assert found["total_bytes"] > plain["total_bytes"]
    assert 1.005 < found["seconds"] / plain["seconds"] < 1.1


def test_times_in_words(llama_7b: Any) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=8192, accumulation_steps=1)
    for steps, word in ((1, "seconds"), (100, "minutes"), (10_000, "hours"), (1_000_000, "days")):
        assert word in shown(plan(replace(run, steps=steps), 80, "rtx-4090"))
    text = shown(plan(run, 80, "rtx-4090"))
    assert "efficiency assumed" in " ".join(text.split())
    assert "unknown; name the GPU with --gpu-type" in shown(plan(run, 80))


def test_values_for_machines(heavy: PlannedRun) -> None:
    found = plan(heavy, 40, "a100-80gb")
    values = json.loads(json.dumps(plan_to_dict(found)))
    assert values["total_bytes"] == sum(item["bytes"] for item in values["items"])
    host = {item["name"]: item["bytes"] for item in values["host_items"]}
    assert values["host_bytes"] == host["processes"] + host["loading"]
    assert (values["fits"], values["memory_bytes"]) == (False, 40 * GIB)
    assert values["advice"][0]["total_bytes"] < values["total_bytes"]
    assert plan_to_dict(plan(heavy, 40))["seconds"] is None
