"""A base of 4 bits under LoRA+, and optimizers of 8 bits: by bitsandbytes' own kernels, which run on the CPU too."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import MakeRecipe
from tests.training.test_memory_optimizations import curve_of

from longlora.merge import merge_adapter
from longlora.models.load import load_for_inference, load_for_training
from longlora.training import trainer as trainer_module
from longlora.training.run import train
from longlora.training.trainer import ExtensionTrainer

bitsandbytes = pytest.importorskip("bitsandbytes")

QLORA = {"quantization": "nf4", "lora": {"target_modules": "all-linear"}}


@pytest.fixture(autouse=True)
def fresh_bitsandbytes() -> None:
    """It remembers, by their place in the optimizer, which parameters of an earlier run were to have 32 bits."""
    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()


def test_linear_layers_have_four_bits_and_what_is_trained_has_thirty_two(make_recipe: MakeRecipe) -> None:
    model = load_for_training(make_recipe(**QLORA)).model
    packed = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert len(packed) == 2 * 7  # all of two layers, and not the output layer
    assert {(module.weight.quant_type, module.weight.quant_state.nested) for module in packed} == {("nf4", True)}
    assert all(module.weight.dtype == torch.uint8 and not module.weight.requires_grad for module in packed)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    kinds = {kind: any(kind in name for name in trained) for kind in ("lora_A", "lora_B", "embed_tokens", "norm")}
    assert all(kinds.values()), kinds
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_what_is_trained_is_not_rounded_by_the_trainer(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[ExtensionTrainer] = []
    original = ExtensionTrainer.create_optimizer

    def remember(self: ExtensionTrainer, model: Any = None) -> Any:
        trainers.append(self)
        return original(self, model)

    monkeypatch.setattr(ExtensionTrainer, "create_optimizer", remember)
    recipe = make_recipe(**QLORA, learning_rate=1e-5, max_steps=1, warmup_steps=0)
    before = load_for_training(recipe).model.state_dict()
    train(recipe)
    (trainer,) = trainers
    after = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad and "embed_tokens" in name}
    assert {parameter.dtype for parameter in after.values()} == {torch.float32}
    for name, parameter in after.items():
        moved = (parameter.detach() - before[name]).abs()
        assert moved.max() == pytest.approx(1e-5, rel=0.1)  # AdamW's first step; bfloat16 near 0.3 steps by 1e-3


def test_a_run_on_four_bits_learns_saves_and_merges(
    make_recipe: MakeRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(**QLORA, gradient_checkpointing=True, tiled_mlp=48)
    adapter = train(recipe)
    losses = curve_of(recipe)[::2]
    assert losses[-1] < losses[0] - 0.5
    assert json.loads((adapter / "longlora.json").read_text())["quantization"] == "nf4"
    with caplog.at_level(logging.WARNING, logger="longlora"):
        report = merge_adapter(adapter, tmp_path / "merged")
    assert "was trained on a base quantized to nf4 and is merged into the original base" in caplog.text
    assert report.largest_difference < 1e-4 * report.largest_logit
    (file,) = (tmp_path / "merged").glob("*.safetensors")
    assert {weight.dtype for weight in load_file(file).values()} == {torch.float32}
    merged, _ = load_for_inference(tmp_path / "merged")
    assert not hasattr(merged.config, "quantization_config")


def test_the_curve_is_near_that_of_the_whole_base_and_not_the_same(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    curves = []
    for quantization in (None, "nf4"):
        recipe = make_recipe(quantization=quantization, max_steps=4, output_dir=str(tmp_path / str(quantization)))
        train(recipe)
        curves.append(curve_of(recipe)[::2])
    assert curves[1] == pytest.approx(curves[0], rel=0.1)
    assert curves[1] != pytest.approx(curves[0], rel=1e-5)


def test_memory_optimizations_on_four_bits_change_nothing(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    curves = []
    for optimizations in ({"chunked_loss": False}, {"gradient_checkpointing": True, "tiled_mlp": 48}):
        recipe = make_recipe(**QLORA, **optimizations, max_steps=3, output_dir=str(tmp_path / str(len(curves))))
        train(recipe)
        curves.append(curve_of(recipe))
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


def test_new_tokens_on_four_bits(make_recipe: MakeRecipe) -> None:
    adapter = train(make_recipe(**QLORA, new_tokens=["<memory>"], max_steps=2))
    model, tokenizer = load_for_inference(adapter)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == 260


def test_eight_bits_of_state_and_thirty_two_for_embeddings(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, tuple[torch.dtype, float]]] = []

    def look(self: Any, args: Any, state: Any, control: Any, optimizer: Any = None, **named: Any) -> None:
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        held = optimizer.optimizer.state
        states.append(
            {n: (held[p]["state1"].dtype, rates[id(p)]) for n, p in named["model"].named_parameters() if p in held}
        )

    monkeypatch.setattr(trainer_module.ProgressBar, "on_step_end", look)
    recipe = make_recipe(optim="adamw_8bit", lora={"r": 128}, embedding_learning_rate=3e-3, max_steps=4)
    train(recipe)
    kinds = {kind: {held for name, held in states[-1].items() if kind in name} for kind in ("lora_A.", "embed_tokens")}
    # bitsandbytes keeps tensors below 4,096 numbers in 32 bits, and transformers every embedding
    assert kinds == {"lora_A.": {(torch.uint8, 1e-2)}, "embed_tokens": {(torch.float32, 3e-3)}}
    losses = curve_of(recipe)[::2]
    assert losses[-1] < losses[0] - 0.2


def test_eight_bits_after_an_interruption(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = {"optim": "adamw_8bit", "lora": {"r": 128}, "max_steps": 5, "save_steps": 2}
    alone = make_recipe(**settings, output_dir=str(tmp_path / "alone"))
    train(alone)

    def interrupt(self: Any, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    interrupted = make_recipe(**settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module.ProgressBar, "on_step_end", interrupt)
        train(interrupted)
    train(interrupted)
    assert curve_of(interrupted) == pytest.approx(curve_of(alone), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_a_paged_optimizer_is_handed_on(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(optim="paged_adamw_8bit", max_steps=2)
    train(recipe)
    assert len(curve_of(recipe)) == 4
