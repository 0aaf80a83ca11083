"""Operations against torch's own count, pairs against S²-Attn's own cuts, hours against published ones."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from longlora.attention.s2 import cut_points
from longlora.errors import ConfigError
from longlora.models.lora import add_adapter
from longlora.planner import compute
from longlora.planner.architecture import find_architecture, parse_architecture
from longlora.planner.compute import GPUS, find_gpu, head_pairs, plan_duration, row_flops, traffic_bytes, window_pairs
from longlora.planner.job import PlannedRun

Original = Callable[..., PlannedRun]

# The paper, table 12: hours of 1,000 steps of 64 rows on 8 A100-80GB, Llama-2-7B.
HOURS = {
    ("lora+", 8192): 5.2,
    ("lora+", 16384): 11.3,
    ("lora+", 32768): 24.6,
    ("lora+", 65536): 52.4,
    ("lora", 8192): 6.0,
    ("lora", 16384): 14.0,
    ("lora", 32768): 36.5,
    ("lora", 65536): 92.5,
    ("full", 8192): 7.4,
    ("full", 16384): 16.3,
    ("full", 32768): 39.8,
}
# LongLoRA as HiCI (arXiv 2603.20843) ran it again on 8 H100, 64 rows a step assumed.
HICI_HOURS = {8192: 2.5, 16384: 5.1, 32768: 11.0, 65536: 27.5, 100_000: 45.1}
SMALL = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def hours(run: PlannedRun, gpu: str = "a100-80gb") -> float:
    return plan_duration(run, GPUS[gpu]).seconds / 3600


def table(original: Original) -> dict[tuple[str, int], float]:
    return {(tuning, length): hours(original(length, tuning)) for tuning, length in HOURS}


def ratios(values: dict[tuple[str, int], float]) -> dict[tuple[Any, ...], float]:
    """Between neighbouring lengths of a method, and between methods at a length."""
    found: dict[tuple[Any, ...], float] = {}
    for tuning, length in values:
        if (tuning, 2 * length) in values:
            found[tuning, length] = values[tuning, 2 * length] / values[tuning, length]
        for other in ("lora", "full"):
            if tuning == "lora+" and (other, length) in values:
                found[other, tuning, length] = values[other, length] / values[tuning, length]
    return found


def test_hours_and_their_ratios_are_those_of_table_12(original: Original) -> None:
    planned = table(original)
    assert planned == pytest.approx(HOURS, rel=0.15)
    assert len(ratios(HOURS)) == 15
    assert ratios(planned) == pytest.approx(ratios(HOURS), rel=0.15)


@pytest.mark.parametrize("length", HICI_HOURS)
def test_hours_of_longlora_run_again_by_others(original: Original, length: int) -> None:
    assert hours(original(length, "lora+"), "h100-80gb") == pytest.approx(HICI_HOURS[length], rel=0.15)


@pytest.mark.parametrize(("gpu", "source"), [("a100-80gb", "paper"), ("h100-80gb", "HiCI")])
def test_efficiencies_are_the_best_fit_to_the_hours_that_they_name(original: Original, gpu: str, source: str) -> None:
    """Least squares of relative errors, two numbers for all lengths and methods, to a whole per cent."""
    published = HOURS if source == "paper" else {("lora+", length): value for length, value in HICI_HOURS.items()}
    efficiency = GPUS[gpu].efficiency(8)
    assert source in str(efficiency.measured)
    counts = [row_flops(original(length, tuning)) for tuning, length in published]
    seconds = [value * 3600 / 8000 for value in published.values()]  # 1,000 steps of 8 rows on each GPU
    unit = GPUS[gpu].peak_flops
    parts = [[c.linear / unit / s, c.attention / unit / s] for c, s in zip(counts, seconds, strict=True)]
    # The rest is the same on every GPU: traffic by its bandwidth, and the eighth part of what a step takes.
    traffic = [traffic_bytes(original(length, tuning)) / GPUS[gpu].bytes_per_second for tuning, length in published]
    rest = [[1 - (t + compute.STEP_SECONDS / 8) / s] for t, s in zip(traffic, seconds, strict=True)]
    inverse = torch.linalg.lstsq(torch.tensor(parts), torch.tensor(rest)).solution.flatten()
    fitted = [round(1 / value, 2) for value in inverse.tolist()]
    assert fitted == [efficiency.linear, efficiency.attention]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ATTENTION_BACKWARD", 0.0),
        ("ATTENTION_BACKWARD", 6.0),
        ("_triangle", lambda count: count * count),  # not causal, as the paper's table 11 counts
        ("_triangle", lambda count: 0),
        ("segment_pairs", lambda tokens, group, first: tokens * (tokens + 1) // 2),  # S² that saves nothing
    ],
)
def test_a_wrong_formula_misses_table_12(
    original: Original, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    monkeypatch.setattr(compute, name, value)
    assert ratios(table(original)) != pytest.approx(ratios(HOURS), rel=0.15)


@pytest.mark.parametrize("shift", [True, False])
@given(tokens=st.integers(1, 300), group=st.integers(1, 320), heads=st.integers(1, 7), layers=st.integers(1, 3))
def test_pairs_are_those_of_the_cuts_that_s2_attention_makes(
    shift: bool, tokens: int, group: int, heads: int, layers: int
) -> None:
    group = min(group, tokens)
    values = {**SMALL, "model_type": "llama", "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 8}
    shape = parse_architecture({**values, "num_hidden_layers": layers}, "small")
    cuts = cut_points(1, tokens, group_size=group, shift=shift)
    unshifted, shifted = (sum(n * (n + 1) // 2 for n in part) for part in (cuts.unshifted, cuts.shifted or ()))
    first_half = cuts.num_unshifted(heads)
    assert first_half == ((heads + 1) // 2 if shift else heads)
    expected = layers * (first_half * unshifted + (heads - first_half) * shifted)
    run = PlannedRun(architecture=shape, context_length=tokens, group_size=group, shift=shift)
    assert head_pairs(run) == expected


def test_pairs_of_layers_with_full_attention(llama_7b: Any) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=4096)
    full = head_pairs(replace(run, attention="full"))
    mixed = head_pairs(replace(run, full_attention_interval=3))
    assert mixed == (10 * full + 22 * head_pairs(run)) // 32  # layers 2, 5, … 29
    assert head_pairs(replace(run, attention="full", full_attention_interval=3)) == full
    with pytest.raises(ConfigError, match=r"full_attention_interval=33 must not exceed the 32 layers"):
        replace(run, full_attention_interval=33)


def test_a_quarter_of_the_row_leaves_0_234_of_the_pairs(llama_7b: Any) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=65536)
    assert head_pairs(run) / head_pairs(replace(run, attention="full")) == pytest.approx(0.234375, rel=1e-3)


@given(tokens=st.integers(1, 60), window=st.integers(1, 70))
def test_pairs_in_a_window(tokens: int, window: int) -> None:
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)[None, :]
    assert window_pairs(tokens, window) == int(((key <= query) & (query - key < window)).sum())


def test_layers_with_a_window_of_their_own_keep_it() -> None:
    values = {**SMALL, "model_type": "gemma2", "sliding_window": 10, "head_dim": 8}
    run = PlannedRun(architecture=parse_architecture(values, "small"), context_length=40)
    full = replace(run, attention="full")
    assert head_pairs(full) == 6 * (2 * window_pairs(40, 10) + window_pairs(40, 40))  # layers 0 and 2 have windows
    assert head_pairs(full) - head_pairs(run) == 6 * window_pairs(40, 40) - 3 * (4 * 55 + 15 + 3 * 55 + 15)


@pytest.mark.parametrize("tuning", ["lora", "lora+", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_operations_of_linear_layers_are_those_that_torch_counts(tuning: Any, checkpointing: bool, tied: bool) -> None:
    values = {**SMALL, "tie_word_embeddings": tied}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **values), attn_implementation="s2")
    if tuning != "full":
        model = add_adapter(
            model,
            trainable=("embed", "norm") if tuning == "lora+" else (),
            r=4,
            lora_alpha=16,
            lora_dropout=0.0,
            target_modules="attention",
        )
    if checkpointing:
        import warnings

        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # its newer name came with 5.23
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
    model.config.use_cache = False
    model.train()
    ids = torch.zeros(1, 40, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    products = {"mm", "addmm"}
    found = sum(count for op, count in counter.get_flop_counts()["Global"].items() if op.__name__ in products)
    run = PlannedRun(
        architecture=parse_architecture({**values, "model_type": "llama"}, "small"),
        context_length=40,
        tuning=tuning,
        lora_rank=4,
        gradient_checkpointing=checkpointing,
        chunked_loss=False,
    )
    if tuning == "lora" and not checkpointing:
        # The first layer's input needs no gradient then, which for models of some size does not matter.
        found += 2 * 40 * (48 * (48 + 24 + 24) + 3 * 4 * 48)
    assert row_flops(run).linear == found


def test_operations_that_optimizations_repeat(llama_7b: Any) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=8192, chunked_loss=False)
    tokens, head = run.context_length, 32000 * 4096
    base = row_flops(run).linear
    assert row_flops(replace(run, reentrant_checkpointing=True)).linear - base == (
        2 * tokens * llama_7b.parameters.mlp // 3  # the last of the three products of each feed-forward
    )
    assert row_flops(replace(run, chunked_loss=True)).linear - base == 2 * tokens * head
    assert row_flops(replace(run, tiled_mlp=4096)).linear - base == 2 * tokens * llama_7b.parameters.mlp
    full = row_flops(replace(run, tuning="full")).linear
    layers = llama_7b.parameters.attention + llama_7b.parameters.mlp
    assert full == 2 * tokens * (4 * layers - llama_7b.parameters.mlp // 3 + 3 * head)


def test_experts_cost_what_a_token_passes() -> None:
    values = {**SMALL, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    shape = parse_architecture(values, "small")
    assert shape.active_mlp_parameters == 3 * (2 * 3 * 48 * 80 + 8 * 48)
    assert shape.parameters.mlp == 3 * (8 * 3 * 48 * 80 + 8 * 48)


def test_a_dense_finish_lies_between(llama_7b: Any) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=65536)
    sparse, dense = hours(run), hours(replace(run, attention="full"))
    assert hours(replace(run, dense_finish=0.2)) == pytest.approx(0.8 * sparse + 0.2 * dense)
    assert hours(replace(run, dense_finish=1.0)) == pytest.approx(dense)
    assert hours(replace(run, attention="full", dense_finish=0.0)) == dense


def test_offloading_takes_time_only_where_the_copies_take_longer_than_the_rest(
    llama_7b: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=65536, tuning="lora", steps=1, accumulation_steps=1)
    offloaded = replace(run, offload_checkpoints=True)
    assert hours(offloaded) == hours(run)
    monkeypatch.setattr(compute, "HOST_BYTES_PER_SECOND", 1e8)
    seconds = 2 * 32 * 4096 * 2 * 65536 / 1e8
    assert 3600 * hours(offloaded) == pytest.approx(seconds + compute.STEP_SECONDS)


def test_memory_traffic_goes_by_the_width_of_layers_and_the_passes_over_them(llama_7b: Any) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=8192, sink_tokens=1)
    width = 81 * (4096 + 11008) + 21 * 3 * 4096
    assert traffic_bytes(run) == 4 * 32 * 8192 * width
    assert traffic_bytes(replace(run, gradient_checkpointing=False)) == 3 * 32 * 8192 * width
    for other in (replace(run, sink_tokens=0), replace(run, attention="full")):
        assert traffic_bytes(other) == 4 * 32 * 8192 * 81 * (4096 + 11008)


# Rows of 2026-11-26 in `attention-h200.jsonl`: milliseconds of an 8B model's layer, without sink tokens and with one.
SINKS_ON_AN_H200 = [(32768, 8192, 15.34, 17.56), (65536, 16384, 55.26, 60.48), (131072, 8192, 61.56, 72.08)]


@pytest.mark.parametrize(("tokens", "group", "without", "with_one"), SINKS_ON_AN_H200)
def test_sink_tokens_take_the_time_that_was_measured(tokens: int, group: int, without: float, with_one: float) -> None:
    shape = replace(find_architecture("meta-llama/Llama-3.1-8B"), num_layers=1)
    run = PlannedRun(architecture=shape, context_length=tokens, group_size=group, gradient_checkpointing=False)
    more = traffic_bytes(replace(run, sink_tokens=1)) - traffic_bytes(run)
    milliseconds = 1000 * more / GPUS["h200"].bytes_per_second
    assert milliseconds == pytest.approx(with_one - without, rel=0.2)
    assert (without + milliseconds) / with_one == pytest.approx(1, abs=0.03)


def test_speed_is_consistent_with_time(llama_7b: Any) -> None:
    run = PlannedRun(architecture=llama_7b, context_length=8192, batch_size=2, accumulation_steps=3, steps=5)
    duration = plan_duration(run, GPUS["a100-80gb"])
    tokens = 8192 * 2 * 3 * 5
    assert duration.tokens_per_second_per_gpu == pytest.approx(tokens / duration.seconds)
    assert duration.flops_per_second_per_gpu == pytest.approx(sum(row_flops(run)) * 30 / duration.seconds)
    assert duration.efficiency_measured_on
    assert plan_duration(run, GPUS["rtx-4090"]).efficiency_measured_on is None


def test_an_unknown_gpu() -> None:
    with pytest.raises(ConfigError, match="unknown GPU 'tpu'; known are a100-40gb"):
        find_gpu("tpu")
    with pytest.raises(ConfigError, match="unknown GPU ''"):
        find_gpu("")
    with pytest.raises(ConfigError, match="GPU 'a100' may be a100-40gb or a100-80gb; name one"):
        find_gpu("a100")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("4090", "rtx-4090"),
        ("RTX 4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("B200", "b200"),
        ("RTX 5090", "rtx-5090"),
        ("A6000", "rtx-a6000"),
        ("L40S", "l40s"),
        ("Tesla T4", "t4"),
        ("H200", "h200"),
        ("h100", "h100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
    ],
)
def test_a_gpu_goes_by_what_people_call_it(name: str, known: str) -> None:
    assert find_gpu(name) is GPUS[known]
