"""A run does what its recipe says, survives interruptions, and never overwrites another."""

import importlib.metadata
import json
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tests.training.conftest import MakeRecipe

from longlora.config import Recipe
from longlora.errors import CheckpointError, ConfigError, DataError, DivergenceError
from longlora.models import registration as register
from longlora.models.grouping import Grouping
from longlora.models.load import load_for_inference
from longlora.support.digests import seal
from longlora.training import trainer as trainer_module
from longlora.training.callbacks import FiniteGradients
from longlora.training.run import train


def losses(recipe: Recipe) -> list[float]:
    lines = (Path(recipe.output_dir) / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
    return [entry["loss"] for entry in entries]


def test_a_run_lowers_the_loss_and_leaves_its_story(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    adapter = train(recipe)
    curve = losses(recipe)
    assert len(curve) == 8
    assert curve[-1] < curve[0] - 0.5
    root = Path(recipe.output_dir)
    assert yaml.safe_load((root / "recipe.yaml").read_text())["learning_rate"] == 1e-2
    packages = json.loads((root / "environment.json").read_text())[0]["packages"]
    assert packages["torch"] == importlib.metadata.version("torch")  # torch itself may add the build, as in +cu130
    extension = json.loads((adapter / "longlora.json").read_text())
    assert (extension["base_context"], extension["context_length"]) == (64, 128)
    assert extension["rope_parameters"]["factor"] == 2.0
    checkpoints = sorted(root.glob("checkpoints/*-*"))
    assert [path.name for path in checkpoints] == ["checkpoint-6", "checkpoint-8"]
    # The last one is there until the result is; no step would need its optimizer's state.
    assert [(path / "optimizer.pt").exists() for path in checkpoints] == [True, False]
    assert [(path / "adapter_model.safetensors").exists() for path in checkpoints] == [True, True]


def test_the_adapter_holds_all_that_was_trained(make_recipe: MakeRecipe, base_model: Path) -> None:
    from safetensors.torch import load_file

    adapter = train(make_recipe())
    saved = load_file(adapter / "adapter_model.safetensors")
    kinds = {kind: [name for name in saved if kind in name] for kind in ("lora_A", "lora_B", "embed_tokens", "norm")}
    assert {kind: len(names) for kind, names in kinds.items()} == {
        "lora_A": 8,
        "lora_B": 8,
        "embed_tokens": 1,
        "norm": 5,
    }
    model, _ = load_for_inference(adapter)
    assert model.config.max_position_embeddings == 128
    for directory in (adapter, *adapter.parent.glob("checkpoints/checkpoint-*")):
        card = (directory / "README.md").read_text(encoding="utf-8")
        assert "More Information Needed" not in card and str(base_model.parent) not in card
        assert "128 tokens" in card


def test_peft_alone_loads_the_adapter(make_recipe: MakeRecipe, base_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    adapter = train(make_recipe())
    config = AutoConfig.from_pretrained(base_model)
    config.rope_parameters = json.loads((adapter / "longlora.json").read_text())["rope_parameters"]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_model, config=config), adapter)
    model, _ = load_for_inference(adapter, dtype="float32")
    tokens = torch.arange(100, device=model.device)[None]
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        torch.testing.assert_close(plain.to(model.device).eval()(input_ids=tokens).logits, expected)


@pytest.mark.parametrize("stop_after", [4, 7])
def test_an_interrupted_run_gives_the_same_curve(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stop_after: int
) -> None:
    alone = make_recipe(output_dir=str(tmp_path / "alone"), attention={"dense_finish": 0.25})
    train(alone)

    interrupted = make_recipe(attention={"dense_finish": 0.25})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module.ProgressBar, "on_step_end", _interrupt_after(stop_after))
        train(interrupted)
    assert len(losses(interrupted)) in (stop_after, stop_after - 1)
    train(interrupted)
    assert losses(interrupted) == pytest.approx(losses(alone), abs=1e-6)


def test_a_checkpoint_that_was_cut_short_is_not_resumed_from(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = make_recipe(output_dir=str(tmp_path / "alone"))
    train(alone)
    recipe = make_recipe()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module.ProgressBar, "on_step_end", _interrupt_after(7))
        train(recipe)
    newest = Path(recipe.output_dir) / "checkpoints" / "checkpoint-6"
    (newest / "digests.json").unlink()
    (newest / "adapter_model.safetensors").write_bytes(b"cut short")
    train(recipe)
    assert losses(recipe) == pytest.approx(losses(alone), abs=1e-6)


@pytest.mark.parametrize("pattern", ["s2", "full"])
def test_the_dense_finish_trains_the_last_steps_with_full_attention(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    seen = []
    original = register.DeferredMask.cuts

    def spy(self: register.DeferredMask, num_tokens: int, *, grouping: Grouping, **others: Any) -> Any:
        # Neither the check at loading nor the look at what grouping costs is a step.
        if not self.is_meta and self.has_gradients and seen[-1:] != [grouping.group_size]:
            seen.append(grouping.group_size)
        return original(self, num_tokens, grouping=grouping, **others)

    monkeypatch.setattr(register.DeferredMask, "cuts", spy)
    train(make_recipe(attention={"pattern": pattern, "dense_finish": 0.25 if pattern == "s2" else 0.0}))
    assert seen == ([32, None] if pattern == "s2" else [None])


def test_one_group_that_holds_every_document_trains_like_full_attention_in_the_unshifted_heads(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Losses of S² and full attention differ: the switch is not a no-op."""
    curves = []
    for pattern in ("s2", "full"):
        recipe = make_recipe(output_dir=str(tmp_path / pattern), attention={"pattern": pattern})
        train(recipe)
        curves.append(losses(recipe))
    assert curves[0][0] != pytest.approx(curves[1][0], abs=1e-4)


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"per_device_train_batch_size": 2}])
def test_ways_of_computing_the_same_give_the_same_curve(
    make_recipe: MakeRecipe, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain = make_recipe(output_dir=str(tmp_path / "plain"))
    if "per_device_train_batch_size" in changes:
        changes = {**changes, "gradient_accumulation_steps": 1}
    other = make_recipe(output_dir=str(tmp_path / "other"), **changes)
    train(plain)
    train(other)
    assert losses(other) == pytest.approx(losses(plain), abs=1e-4)


def test_full_fine_tuning_saves_a_plain_model(make_recipe: MakeRecipe) -> None:
    from transformers import AutoModelForCausalLM

    directory = train(make_recipe(tuning="full", learning_rate=1e-3))
    config = json.loads((directory / "config.json").read_text())
    assert (config["max_position_embeddings"], config["rope_parameters"]["factor"]) == (128, 2.0)
    reloaded = AutoModelForCausalLM.from_pretrained(directory)
    assert reloaded.lm_head.weight is reloaded.model.embed_tokens.weight


def test_lora_alone_trains_no_embeddings(make_recipe: MakeRecipe) -> None:
    from safetensors.torch import load_file

    saved = load_file(train(make_recipe(tuning="lora", max_steps=2)) / "adapter_model.safetensors")
    assert all("lora_" in name for name in saved)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    original = trainer_module.SFTTrainer.training_step

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = original(self, *args, **kwargs)
        return loss * math.nan if self.state.global_step == 4 else loss

    monkeypatch.setattr(trainer_module.SFTTrainer, "training_step", poisoned)
    with pytest.raises(DivergenceError, match="the loss became nan at step 5; lower learning_rate"):
        train(recipe)
    checkpoints = Path(recipe.output_dir) / "checkpoints"
    assert [path.name for path in checkpoints.glob("checkpoint-*/digests.json")] == ["digests.json"]
    assert not (Path(recipe.output_dir) / "adapter").exists()


def test_a_gradient_that_is_no_number_stops_the_run_too(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    original = trainer_module.SFTTrainer.training_step

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = original(self, *args, **kwargs)
        if self.state.global_step == 4:
            next(p for p in self.model.parameters() if p.grad is not None).grad[0] = math.inf
        return loss

    monkeypatch.setattr(trainer_module.SFTTrainer, "training_step", poisoned)
    with pytest.raises(DivergenceError, match="gradients became NaN or infinite at step 5"):
        train(recipe)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_the_look_at_gradients_takes_no_memory_and_raises_no_false_alarm(dtype: torch.dtype, bad: float | None) -> None:
    from tests.planner.test_activations import HeldBytes

    model = torch.nn.Linear(1000, 1000, bias=False, dtype=dtype)
    model.register_parameter("empty", torch.nn.Parameter(torch.empty(0, dtype=dtype)))  # as a process's shard may be
    gradient = torch.full((1000, 1000), torch.finfo(dtype).max, dtype=dtype)  # its sum and its norm are infinite
    gradient[0, 0] = -torch.finfo(dtype).max
    if bad is not None:
        gradient[500, 7] = bad
    model.weight.grad, model.empty.grad = gradient, torch.empty(0, dtype=dtype)
    args, state = SimpleNamespace(fp16=False, learning_rate=1.0), SimpleNamespace(global_step=4)
    raises = pytest.raises(DivergenceError, match="at step 5") if bad is not None else nullcontext()
    with HeldBytes(model) as held, raises:
        FiniteGradients().on_pre_optimizer_step(args, state, None, model=model)  # type: ignore[arg-type]
    assert held.peak < 100 + gradient.nbytes / 1000


def test_a_finished_run_is_not_overwritten(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(max_steps=1)
    train(recipe)
    with pytest.raises(ConfigError, match="holds a finished run"):
        train(recipe)


def test_an_unfinished_run_of_another_recipe_is_not_resumed(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module.ProgressBar, "on_step_end", _interrupt_after(4))
        train(make_recipe())
    with pytest.raises(ConfigError, match=r"another recipe \(learning_rate: 0.01 -> 0.5\)"):
        train(make_recipe(learning_rate=0.5))


def test_too_few_rows_are_said_before_training(make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture) -> None:
    train(make_recipe(max_steps=1, gradient_accumulation_steps=500))
    assert "the run needs 500 rows and the data has" in caplog.text


def test_a_mended_recipe_starts_in_the_same_folder(make_recipe: MakeRecipe, tmp_path: Path, text_folder: Path) -> None:
    with pytest.raises(DataError):
        train(make_recipe(data={"source": str(tmp_path / "nowhere.txt")}))
    assert train(make_recipe(max_steps=1)).is_dir()


def test_a_folder_that_is_something_else_is_left_alone(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="is not a longlora run"):
        train(make_recipe())


def test_a_damaged_record_of_a_run(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    seal(checkpoint)
    (tmp_path / "run" / "recipe.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is missing or damaged"):
        train(make_recipe())


def test_mistakes_are_the_user_s(make_recipe: MakeRecipe, tmp_path: Path, text_folder: Path) -> None:
    with pytest.raises(ConfigError, match="context_length=64 must exceed the 64 tokens"):
        train(make_recipe(context_length=64))
    with pytest.raises(CheckpointError, match="there is no model directory"):
        train(make_recipe(model_name_or_path=str(tmp_path / "nowhere"), output_dir=str(tmp_path / "a")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        train(make_recipe(data={"source": str(tmp_path / "empty")}, output_dir=str(tmp_path / "b")))


def _interrupt_after(step: int) -> Any:
    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt

    return on_step_end
