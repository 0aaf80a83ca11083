"""Embeddings learn at a rate of their own, through the whole schedule."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import MakeRecipe

from longlora.errors import ConfigError
from longlora.training import trainer as trainer_module
from longlora.training.run import train
from longlora.training.trainer import ExtensionTrainer, give_own_rate


def test_parameters_move_to_a_group_that_differs_in_the_rate_alone(seed: int) -> None:
    torch.manual_seed(seed)
    first, second, third = (torch.nn.Parameter(torch.randn(3)) for _ in range(3))
    groups = [{"params": [first, second], "weight_decay": 0.1}, {"params": [third], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.8, 0.9))
    give_own_rate(optimizer, [second], 5e-2)
    settings = [
        (group["params"], group["lr"], group["weight_decay"], group["betas"]) for group in optimizer.param_groups
    ]
    assert settings == [
        ([first], 1e-3, 0.1, (0.8, 0.9)),
        ([third], 1e-3, 0.0, (0.8, 0.9)),
        ([second], 5e-2, 0.1, (0.8, 0.9)),
    ]
    before = [parameter.detach().clone() for parameter in (first, second, third)]
    for parameter in (first, second, third):
        parameter.grad = torch.ones(3)
    optimizer.step()
    # AdamW's first step is the rate itself, after decay by rate · weight_decay
    for parameter, old, rate, decay in zip(
        (first, second, third), before, (1e-3, 5e-2, 1e-3), (0.1, 0.1, 0.0), strict=True
    ):
        torch.testing.assert_close(parameter.detach(), old * (1 - rate * decay) - rate)


def test_parameters_that_the_optimizer_does_not_hold() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ConfigError, match=r"embedding_learning_rate=0\.5 cannot be applied"):
        give_own_rate(optimizer, [torch.nn.Parameter(torch.ones(1))], 0.5)


def test_a_run_gives_embeddings_their_rate(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[tuple[float, list[tuple[int, ...]]]]] = []

    def spy(self: Any, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        seen.append([(group["lr"], [tuple(p.shape) for p in group["params"]]) for group in optimizer.param_groups])

    monkeypatch.setattr(trainer_module.ProgressBar, "on_step_end", spy)
    train(make_recipe(embedding_learning_rate=3e-2, max_steps=3))
    *others, (rate, shapes) = seen[-1]
    assert (rate, shapes) == (3e-2, [(259, 32)])
    assert {rate for rate, _ in others} == {1e-2}
    assert all((259, 32) not in shapes for _, shapes in others)
    assert seen[0][-1][0] == pytest.approx(3 * seen[0][0][0])  # the warm-up scales both


def test_without_a_rate_of_their_own_the_groups_are_as_ever(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainers: list[ExtensionTrainer] = []
    original = ExtensionTrainer.create_optimizer

    def remember(self: ExtensionTrainer, model: Any = None) -> Any:
        trainers.append(self)
        original(self, model)
        return original(self, model)  # a second call changes nothing

    monkeypatch.setattr(ExtensionTrainer, "create_optimizer", remember)
    train(make_recipe(max_steps=1))
    train(make_recipe(max_steps=1, output_dir=str(tmp_path / "other"), embedding_learning_rate=1e-3))
    assert [len(trainer.optimizer.param_groups) for trainer in trainers] == [2, 3]
