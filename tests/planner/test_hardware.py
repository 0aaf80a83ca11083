"""GPUs by the names of their drivers."""

import pytest

from longlora.planner.compute import GPUS, recognise_gpu


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_a_gpu_is_recognised_by_what_its_driver_calls_it(device: str, name: str) -> None:
    assert recognise_gpu(device) is GPUS[name]


def test_one_that_is_not_known_is_no_other() -> None:
    assert recognise_gpu("NVIDIA L400") is None
