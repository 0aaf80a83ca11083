"""Every memory optimization gives the same curve as without it, alone and together."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.training.conftest import MakeRecipe
from transformers import LlamaConfig

from longlora.config import Recipe
from longlora.errors import ConfigError
from longlora.models import memory_optimizations as memory
from longlora.planner.compute import GIB
from longlora.training import announcements
from longlora.training import trainer as trainer_module
from longlora.training.run import train
from longlora.training.trainer import ExtensionTrainer

PLAIN = {"chunked_loss": False, "optim": "adamw_torch", "max_steps": 4, "lora": {"target_modules": "all-linear"}}
EVERY_OPTIMIZATION = {
    "chunked_loss": True,
    "gradient_checkpointing": True,
    "tiled_mlp": 48,
    "optim": "adamw_torch_fused",
}
TOLERANCE = 1e-5  # of losses near 5 that fall by 1 within the four steps

Curve = Callable[..., list[float]]


@pytest.fixture
def curve(make_recipe: MakeRecipe, tmp_path: Path) -> Curve:
    """Losses and gradient norms of a run without them, or with the changes that are named."""
    numbers = iter(range(100))

    def run(**changes: Any) -> list[float]:
        recipe = make_recipe(**{**PLAIN, "output_dir": str(tmp_path / f"run-{next(numbers)}"), **changes})
        train(recipe)
        return curve_of(recipe)

    return run


def curve_of(recipe: Recipe) -> list[float]:
    lines = (Path(recipe.output_dir) / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == recipe.max_steps
    return [json.loads(line)[key] for line in lines for key in ("loss", "grad_norm")]


def test_every_optimization_alone_and_all_together(curve: Curve) -> None:
    plain = curve()
    for name, value in EVERY_OPTIMIZATION.items():
        assert curve(**{name: value}) == pytest.approx(plain, rel=TOLERANCE), name
    assert curve(**EVERY_OPTIMIZATION) == pytest.approx(plain, rel=TOLERANCE)


def test_a_lost_tile_would_be_noticed(curve: Curve, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = curve(max_steps=2)
    monkeypatch.setattr(memory, "checkpoint", lambda forward, tile, **_: forward(tile) * (tile.shape[1] == 48))
    assert curve(max_steps=2, tiled_mlp=48) != pytest.approx(plain, rel=TOLERANCE)


@pytest.mark.parametrize("optimizations", [{}, EVERY_OPTIMIZATION], ids=["none", "every"])
def test_eight_small_steps_are_one_large_step(curve: Curve, optimizations: dict[str, Any]) -> None:
    small = curve(**optimizations, max_steps=2, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    large = curve(**optimizations, max_steps=2, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    assert small == pytest.approx(large, rel=TOLERANCE)


def test_full_fine_tuning_with_every_optimization(curve: Curve) -> None:
    settings = {"tuning": "full", "learning_rate": 1e-3, "max_steps": 3}
    assert curve(**settings, **EVERY_OPTIMIZATION) == pytest.approx(curve(**settings), rel=TOLERANCE)


def test_what_is_saved_has_the_same_names(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    saved = []
    for optimizations in ({}, EVERY_OPTIMIZATION):
        recipe = make_recipe(
            **{**PLAIN, **optimizations, "max_steps": 1, "output_dir": str(tmp_path / str(len(saved)))}
        )
        saved.append(load_file(train(recipe) / "adapter_model.safetensors"))
    assert saved[0].keys() == saved[1].keys()
    for name, tensor in saved[0].items():
        torch.testing.assert_close(saved[1][name], tensor, rtol=0, atol=1e-4, msg=name)


@pytest.fixture
def experts(base_model: Path, tmp_path: Path) -> Path:
    """A random mixture of experts with the tokenizer of the base model."""
    from tests.families.families import FAMILIES
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (family,) = (family for family in FAMILIES if family.model_type == "mixtral")
    torch.manual_seed(0)
    directory = tmp_path / "experts"
    AutoModelForCausalLM.from_config(family.config(router_aux_loss_coef=0.3)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(base_model).save_pretrained(directory)
    return directory


def test_the_balance_of_experts_counts_the_same_in_either_loss(curve: Curve, experts: Path) -> None:
    settings = {"model_name_or_path": str(experts), "lora": {}, "max_steps": 3, "gradient_accumulation_steps": 3}
    assert curve(**settings, chunked_loss=True) == pytest.approx(curve(**settings), rel=TOLERANCE)


def test_experts_are_not_tiled(make_recipe: MakeRecipe, experts: Path) -> None:
    with pytest.raises(ConfigError, match="routes tokens among experts"):
        train(make_recipe(model_name_or_path=str(experts), tiled_mlp=48))


def test_a_loss_that_trl_does_not_know_is_the_models_own(
    curve: Curve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = curve(max_steps=2)
    monkeypatch.setattr(trainer_module, "why_not_in_pieces", lambda config: "it computes its loss differently")

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("TRL's loss was asked for")

    monkeypatch.setattr(trainer_module.SFTTrainer, "compute_loss", fail)
    assert curve(max_steps=2, chunked_loss=True) == plain
    assert "chunked_loss is not used" in caplog.text and "it computes its loss differently" in caplog.text


def test_the_models_own_loss_returns_its_outputs_when_asked(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    original = ExtensionTrainer.compute_loss

    def asking(self: ExtensionTrainer, model: Any, inputs: Any, return_outputs: bool = False, **others: Any) -> Any:
        loss, outputs = original(self, model, inputs, return_outputs=True, **others)
        seen.append(tuple(outputs.logits.shape))
        return loss

    monkeypatch.setattr(ExtensionTrainer, "compute_loss", asking)
    train(make_recipe(max_steps=1, chunked_loss=False, gradient_accumulation_steps=1))
    assert seen == [(1, 128, 259)]


@pytest.mark.cpu
def test_offloading_without_a_gpu_is_not_followed_and_said(curve: Curve, caplog: pytest.LogCaptureFixture) -> None:
    plain = curve(max_steps=2)
    with caplog.at_level(logging.WARNING, logger="longlora"):
        assert curve(max_steps=2, activation_offloading=True) == plain
    assert "activation_offloading is not used: without a GPU" in caplog.text


@pytest.mark.parametrize(("free", "level"), [(100, logging.INFO), (60, logging.WARNING)])
def test_what_offloading_takes_from_the_host_is_said(
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free: int,
    level: int,
) -> None:
    memory = SimpleNamespace(available=free * GIB, total=125 * GIB)
    monkeypatch.setattr(announcements.psutil, "virtual_memory", lambda: memory)
    recipe = make_recipe(
        context_length=262_144, per_device_train_batch_size=1, dtype="bfloat16", gradient_checkpointing=True
    )
    config = LlamaConfig(hidden_size=4096, num_hidden_layers=32)
    with caplog.at_level(logging.INFO, logger="longlora"):
        announcements.tell_offloading(recipe, config)
    (record,) = caplog.records
    assert record.levelno == level
    assert f"take 64.0 GiB of the host's memory in 1 process, and {free}.0 of 125.0 GiB are free" in caplog.text
    assert ("the run will run out of memory" in caplog.text) == (level == logging.WARNING)


def test_what_leaves_without_checkpointing_is_not_guessed(
    make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="longlora"):
        announcements.tell_offloading(make_recipe(gradient_checkpointing=False), LlamaConfig())
    assert caplog.text == ""


@pytest.mark.cpu
def test_float16_is_refused_without_a_gpu(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ConfigError, match=r"dtype=float16 needs a GPU.*use bfloat16 or float32"):
        train(make_recipe(dtype="float16"))


@pytest.mark.gpu
def test_offloading_changes_nothing_on_a_gpu(curve: Curve) -> None:
    settings = {"gradient_checkpointing": True}
    assert curve(**settings, activation_offloading=True) == pytest.approx(curve(**settings), rel=TOLERANCE)


def test_offloading_is_handed_to_trl_where_there_is_a_gpu(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module.torch.cuda, "is_available", lambda: True)
    assert trainer_module._activation_offloading(make_recipe(activation_offloading=True)) is True
    assert trainer_module._activation_offloading(make_recipe()) is False


def test_an_update_of_the_output_layer_is_refused(make_recipe: MakeRecipe, experts: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora.target_modules=\('lm_head',\).* leave that layer out"):
        train(make_recipe(model_name_or_path=str(experts), tuning="lora", lora={"target_modules": ["lm_head"]}))
