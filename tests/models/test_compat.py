"""What other libraries would do by themselves, and do not do here."""

from pathlib import Path

import pytest
from accelerate.utils import DistributedType
from torch import nn
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from longlora.models.compat import allow_fsdp_on_cpu, keep_to_fitting_kernels, use_one_gpu


@pytest.fixture
def arguments(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True)


def test_a_process_keeps_to_one_gpu(arguments: TrainingArguments) -> None:
    arguments._n_gpu = 4
    assert arguments.parallel_mode == ParallelMode.NOT_DISTRIBUTED  # what transformers would make of four
    use_one_gpu(arguments)
    assert (arguments.n_gpu, arguments.parallel_mode) == (1, ParallelMode.NOT_PARALLEL)


@pytest.mark.parametrize(
    ("asked", "found", "expected"),
    [
        ("true", DistributedType.MULTI_CPU, DistributedType.MULTI_GPU),
        ("false", DistributedType.MULTI_CPU, DistributedType.MULTI_CPU),
        ("true", DistributedType.NO, DistributedType.NO),
    ],
)
def test_fsdp_on_the_cpu_only_where_it_is_asked_for(
    arguments: TrainingArguments,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    found: DistributedType,
    expected: DistributedType,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", asked)
    before = arguments.distributed_state.distributed_type
    arguments.distributed_state.distributed_type = found
    allow_fsdp_on_cpu(arguments)
    try:
        assert arguments.distributed_state.distributed_type == expected
    finally:
        arguments.distributed_state.distributed_type = before  # all of accelerate's states are one


@pytest.mark.parametrize(("trains", "kept"), [(False, [True, False, False]), (True, [False, False, False])])
def test_four_bit_layers_keep_to_kernels_that_can_compute_them(
    monkeypatch: pytest.MonkeyPatch, trains: bool, kept: list[bool]
) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    shapes = [(128, 32), (160, 32), (128, 40)]  # inputs and outputs: whole blocks of 64, groups of 32
    layers = nn.Sequential(*(bitsandbytes.nn.Linear4bit(*shape, bias=False) for shape in shapes)).to("cpu")
    keep_to_fitting_kernels(layers, trains=trains)
    assert [layer.support_avx512bf16_for_cpu for layer in layers] == kept
