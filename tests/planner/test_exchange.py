"""What GPUs that share a row send: the halo, by S²-Attn's own cuts. Ulysses is counted in tests/training."""

from dataclasses import replace
from itertools import accumulate

import pytest

from longlora.attention.s2 import cut_points
from longlora.errors import ConfigError
from longlora.planner import Architecture, PlannedRun, find_gpu
from longlora.planner.compute import plan_duration
from longlora.planner.exchange import exchange_seconds, halo_bytes, ring_bytes, ulysses_bytes
from longlora.planner.memory import plan_memory


@pytest.fixture
def alone(llama_7b: Architecture) -> PlannedRun:
    return PlannedRun(architecture=llama_7b, context_length=1024, strategy="fsdp2", num_gpus=8, accumulation_steps=8)


@pytest.mark.parametrize(("size", "group"), [(2, 256), (4, 256), (8, 256), (8, 96), (8, 1024), (8, 30)])
def test_the_halo_reaches_to_the_beginning_of_its_groups(alone: PlannedRun, size: int, group: int) -> None:
    run = replace(alone, sequence_parallel_size=size, group_size=group)
    cuts = cut_points(1, 1024, group_size=group)
    reached = []
    for first in range(0, 1024, 1024 // size):
        begins = [
            max(start for start in (0, *accumulate(cuts.lengths(shifted=shifted))) if start <= first)
            for shifted in (False, True)
        ]
        reached.append(sum(first - begin for begin in begins))
    keys_and_values_of_half_the_heads = 2 * 2 * run.architecture.kv_size // 2  # bytes
    assert halo_bytes(run) == max(reached) * keys_and_values_of_half_the_heads


def test_a_ring_has_all_keys_and_values_come_by(alone: PlannedRun) -> None:
    run = replace(alone, sequence_parallel_size=8)
    assert ring_bytes(run) == 2 * 2 * run.architecture.kv_size * (1024 - 128)


def test_a_row_on_eight_takes_their_time_together_and_the_exchanges(alone: PlannedRun) -> None:
    gpu = find_gpu("h100")
    shared = replace(alone, sequence_parallel_size=8, accumulation_steps=64)
    more = plan_duration(shared, gpu).seconds - plan_duration(alone, gpu).seconds
    rows = alone.steps * 64
    assert more == pytest.approx(rows * exchange_seconds(shared, gpu.bytes_between), rel=1e-6)
    assert exchange_seconds(alone, gpu.bytes_between) == 0
    assert exchange_seconds(shared, 1.0) == 3 * 32 * ulysses_bytes(shared)  # forward, again, backward; 32 layers


def test_a_row_on_eight_leaves_an_eighth_of_its_tokens_on_each(alone: PlannedRun) -> None:
    long = replace(alone, context_length=2**19)
    items = {item.name: item.bytes for item in plan_memory(long).items}
    shared = {item.name: item.bytes for item in plan_memory(replace(long, sequence_parallel_size=8)).items}
    assert shared["layer inputs"] * 8 == items["layer inputs"]
    assert shared["frozen weights"] == items["frozen weights"]


def test_gpus_that_do_not_divide_are_refused(alone: PlannedRun) -> None:
    with pytest.raises(ConfigError, match="sequence_parallel_size=3 must divide the number of GPUs, found 8"):
        replace(alone, sequence_parallel_size=3)
