"""Rows divided among processes: the numbers of one process, to the last digits of float64."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from tests.models.small_models import SIZES, tiny_model
from tests.training.conftest import MakeRecipe
from tests.training.ranks_of_a_row import WRONG
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import LlamaConfig

from longlora.errors import ConfigError
from longlora.training.sequence_parallel import SequenceParallel, check_divisible
from longlora.training.trainer import training_arguments

TOLERANCE = 1e-10
REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.cpu


def differences(seed: int, *options: str) -> dict[str, float | str]:
    """What four processes find, whose text is told where they fail."""
    command = [sys.executable, "-m", "tests.training.ranks_of_a_row", str(seed), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # DeepSpeed prints, too


def test_rows_of_several_processes_are_those_of_one(seed: int) -> None:
    found = differences(seed)
    assert found.pop(WRONG) > 1e-3
    assert {case: difference for case, difference in found.items() if difference > TOLERANCE} == {}, f"seed {seed}"


@pytest.mark.slow
def test_every_family_is_equal_or_refused(seed: int) -> None:
    found = differences(seed, "--families")
    refused = {name: reason for name, reason in found.items() if isinstance(reason, str)}
    assert refused.keys() == {"llama4_text", "qwen3_next"}
    assert all("chunked_attention" in reason or "mixes tokens" in reason for reason in refused.values()), refused
    # Some multiply by the scales of norms in float32, whose gradients are then sums of other rounding.
    too_far = {name: found[name] for name in found.keys() - refused.keys() if found[name] > 1e-5}
    assert too_far == {}, f"seed {seed}"
    assert sum(difference < TOLERANCE for name, difference in found.items() if name not in refused) >= 15


@pytest.mark.slow
def test_deepspeed_divides_the_heads_of_s2_as_well(seed: int) -> None:
    pytest.importorskip("deepspeed.runtime.sequence_parallel.ulysses_sp", reason="DeepSpeed is not installed")
    found = differences(seed, "--deepspeed")
    assert len(found) == 9
    assert {case: difference for case, difference in found.items() if difference > TOLERANCE} == {}, f"seed {seed}"


@pytest.mark.parametrize(
    ("processes", "read"),
    [(2, [[[0, 1], [2, 3], [4]]] * 2), (4, [[[0, 1], [4, 0]]] * 2 + [[[2, 3], [1, 2]]] * 2)],
)
def test_processes_that_share_rows_read_the_same_ones(processes: int, read: list[list[list[int]]]) -> None:
    """A short last batch stays as one process has it; several groups fill it up, as data parallelism does."""
    pair: Any = SimpleNamespace(size=2)
    loaders = []
    for rank in range(processes):
        batches = BatchSampler(SequentialSampler(range(5)), batch_size=2, drop_last=False)
        shard: Any = BatchSamplerShard(batches, num_processes=processes, process_index=rank)
        loaders.append(SequenceParallel.share_rows(pair, DataLoader(range(5), batch_sampler=shard)))  # type: ignore[arg-type]
    assert [[batch.tolist() for batch in loader] for loader in loaders] == read


@pytest.mark.parametrize(("size", "divides"), [(2, True), (4, True), (8, True), (3, False), (6, False), (12, False)])
def test_a_size_must_divide_the_heads(size: int, divides: bool) -> None:
    model = tiny_model(0, LlamaConfig(**SIZES | {"num_attention_heads": 8, "num_key_value_heads": 4}))
    if divides:
        check_divisible(model, size)
        return
    with pytest.raises(ConfigError, match=f"sequence_parallel_size={size} must divide the model's 8 query heads, and"):
        check_divisible(model, size)


def test_what_mixes_tokens_elsewhere_is_refused() -> None:
    model = tiny_model(0)
    model.model.short = torch.nn.Conv1d(2, 2, 3)
    with pytest.raises(ConfigError, match=r"model\.short of llama mixes tokens outside attention"):
        check_divisible(model, 2)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ConfigError, match="rope_type=dynamic depends on the longest document"):
        check_divisible(tiny_model(0, LlamaConfig(**SIZES, rope_parameters=rope)), 2)
    by_kind = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    model = tiny_model(0)
    model.config.rope_parameters = by_kind
    with pytest.raises(ConfigError, match="rope_type=dynamic depends on the longest document"):
        check_divisible(model, 2)
    with pytest.raises(ConfigError, match="the attention of llama cannot be divided"):
        check_divisible(tiny_model(0, attention="sdpa"), 2)


def test_too_few_processes_are_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ConfigError, match="sequence_parallel_size=2 must divide the number of processes, found 1"):
        training_arguments(make_recipe(sequence_parallel_size=2))
