"""What GPUs that share a row send, and what they hold. The bytes of Ulysses are counted in tests/training."""

from dataclasses import replace

import pytest

from longlora.errors import ConfigError
from longlora.planner.architecture import Architecture
from longlora.planner.compute import exchange_seconds, find_gpu, plan_duration, ulysses_bytes
from longlora.planner.job import PlannedRun
from longlora.planner.memory import plan_memory


@pytest.fixture
def alone(llama_7b: Architecture) -> PlannedRun:
    return PlannedRun(architecture=llama_7b, context_length=1024, strategy="fsdp2", num_gpus=8, accumulation_steps=8)


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
