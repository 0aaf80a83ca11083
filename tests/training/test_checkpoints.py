"""A checkpoint is taken up under those strategies that can."""

from pathlib import Path

import pytest
import torch

from longlora.errors import CheckpointError
from longlora.training.checkpoints import resumable


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "checkpoints" / "checkpoint-6"
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    return path


@pytest.mark.parametrize(
    ("file", "own", "other", "remedy"),
    [
        ("optimizer.pt", ("single", "ddp"), ("fsdp2", "zero2", "zero3"), "single or ddp"),
        ("optimizer.bin", ("fsdp2",), ("zero2",), "fsdp2, ddp or single"),
        ("latest", ("zero2", "zero3"), ("single", "fsdp2"), "the one of zero2 and zero3 that wrote it"),
    ],
)
def test_who_can_go_on(checkpoint: Path, file: str, own: tuple, other: tuple, remedy: str) -> None:
    (checkpoint / file).touch()
    for strategy in own:
        assert resumable(checkpoint, strategy) == checkpoint
    for strategy in other:
        with pytest.raises(
            CheckpointError, match=f"cannot be resumed with --strategy {strategy}: resume with {remedy}"
        ):
            resumable(checkpoint, strategy)


def test_the_optimizer_of_fsdp2_in_its_own_order(checkpoint: Path, seed: int) -> None:
    """Names become numbers as torch's optimizers count them; the weights stay where they are."""
    torch.manual_seed(seed)
    parameters = {name: torch.nn.Parameter(torch.randn(3)) for name in ("z", "a", "m")}
    groups = [{"params": [parameters["z"], parameters["m"]], "lr": 0.1}, {"params": [parameters["a"]], "lr": 0.2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.3)
    for parameter in parameters.values():
        parameter.grad = torch.randn(3)
    optimizer.step()
    expected = optimizer.state_dict()
    names = ["z", "m", "a"]
    torch.save(
        {
            "state": {names[number]: state for number, state in reversed(expected["state"].items())},
            "param_groups": [
                {**group, "params": [names[number] for number in group["params"]]} for group in expected["param_groups"]
            ],
        },
        checkpoint / "optimizer.bin",
    )
    (checkpoint / "pytorch_model_fsdp.bin").touch()
    for _ in range(2):  # what an earlier start left is in nobody's way
        converted = resumable(checkpoint, "single")
    assert converted.name == checkpoint.name
    assert sorted(path.name for path in converted.iterdir()) == ["adapter_model.safetensors", "optimizer.pt"]
    assert (converted / "adapter_model.safetensors").read_bytes() == b"weights"
    found = torch.load(converted / "optimizer.pt", weights_only=True)
    assert found["param_groups"] == expected["param_groups"]
    for number, state in expected["state"].items():
        assert all(torch.equal(found["state"][number][key], value) for key, value in state.items())
