"""What other ways to share a row would send: the halo, by S²-Attn's own cuts."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest

from longlora.attention.s2 import cut_points
from longlora.planner.architecture import find_architecture
from longlora.planner.job import PlannedRun

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
Count = Callable[[PlannedRun], int]


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> dict[str, Count]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_sequence_parallel").WAYS


def test_the_page_says_what_the_script_calculates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("_sequence_parallel")
    page = (BENCHMARKS.parent / "docs" / "strategies.md").read_text(encoding="utf-8")
    for table in (script.exchanges, script.contexts, script.steps):
        assert table().strip() in page


@pytest.fixture
def alone() -> PlannedRun:
    llama_7b = find_architecture("meta-llama/Llama-2-7b-hf")
    return PlannedRun(architecture=llama_7b, context_length=1024, strategy="fsdp2", num_gpus=8, accumulation_steps=8)


@pytest.mark.parametrize(("size", "group"), [(2, 256), (4, 256), (8, 256), (8, 96), (8, 1024), (8, 30)])
def test_the_halo_reaches_to_the_beginning_of_its_groups(
    ways: dict[str, Count], alone: PlannedRun, size: int, group: int
) -> None:
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
    assert ways["halo"](run) == max(reached) * keys_and_values_of_half_the_heads


def test_a_ring_has_all_keys_and_values_come_by(ways: dict[str, Count], alone: PlannedRun) -> None:
    run = replace(alone, sequence_parallel_size=8)
    assert ways["ring"](run) == 2 * 2 * run.architecture.kv_size * (1024 - 128)
