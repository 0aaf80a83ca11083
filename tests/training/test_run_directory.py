"""One process at a time trains in a folder; what may differ between two starts of a run; what counts as whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import MakeRecipe

from longlora.errors import ConfigError
from longlora.models.directories import Extension, read_extension
from longlora.training.checkpoints import finish_checkpoint
from longlora.training.run import train
from longlora.training.run_directory import RunDirectory, open_run, step_of

EXTENSION = Extension(base_model="base", base_context=64, context_length=128, rope_parameters={"rope_type": "linear"})


def with_checkpoint(make_recipe: MakeRecipe, processes: int, **changes: Any) -> None:
    """Leave a run of that many processes with a whole checkpoint."""
    with open_run(make_recipe(**changes), num_processes=processes, strategy="ddp") as run:
        checkpoint = run.checkpoints / "checkpoint-3"
        checkpoint.mkdir()
        finish_checkpoint(checkpoint, EXTENSION)


def test_a_run_is_held_and_let_go(make_recipe: MakeRecipe) -> None:
    message = "is in use by another training process"
    with open_run(make_recipe()), pytest.raises(ConfigError, match=message), open_run(make_recipe()):
        pass
    with open_run(make_recipe()):
        pass


@pytest.mark.parametrize(("processes", "accumulation", "batch"), [(1, 8, 1), (2, 4, 1), (4, 1, 2)])
def test_the_same_rows_in_a_step_from_other_processes(
    make_recipe: MakeRecipe, processes: int, accumulation: int, batch: int
) -> None:
    with_checkpoint(make_recipe, 2, gradient_accumulation_steps=4)
    changes = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": batch}
    with open_run(make_recipe(**changes), num_processes=processes, strategy="single") as run:
        assert run.resumes_from == run.checkpoints / "checkpoint-3"
    starts = json.loads((run.root / "environment.json").read_text())
    assert [(start["strategy"], start["processes"]) for start in starts] == [("ddp", 2), ("single", processes)]


def test_what_hardware_a_recipe_is_meant_for_may_change(make_recipe: MakeRecipe) -> None:
    with_checkpoint(make_recipe, 1)
    with open_run(make_recipe(hardware={"gpus": 2, "strategy": "ddp"})) as run:
        assert run.resumes_from == run.checkpoints / "checkpoint-3"


def test_other_rows_in_a_step(make_recipe: MakeRecipe) -> None:
    with_checkpoint(make_recipe, 2, gradient_accumulation_steps=4)
    message = "per_device_train_batch_size × gradient_accumulation_steps × processes: 8 -> 4"
    with pytest.raises(ConfigError, match=message), open_run(make_recipe(gradient_accumulation_steps=4)):
        pass


def test_a_finished_checkpoint_can_be_read_as_an_adapter(make_recipe: MakeRecipe) -> None:
    from longlora.models.load import load_for_inference

    recipe = make_recipe(max_steps=3)
    adapter = train(recipe)
    checkpoint = RunDirectory(recipe).finished_checkpoints()[-1]
    assert step_of(checkpoint) == 3
    assert read_extension(checkpoint) == read_extension(adapter)
    models = [load_for_inference(directory)[0] for directory in (checkpoint, adapter)]
    tokens = torch.arange(50, device=models[0].device)[None]
    with torch.no_grad():
        assert torch.equal(*(model(input_ids=tokens).logits for model in models))


@pytest.mark.parametrize("tuning", ["lora+", "full"])
def test_a_run_that_ended_before_its_result_was_written(make_recipe: MakeRecipe, tuning: str) -> None:
    """No step is done twice: the result is made of the last checkpoint."""
    import shutil

    from safetensors.torch import load_file

    recipe = make_recipe(max_steps=3, tuning=tuning, learning_rate=1e-3)
    result = train(recipe)
    kept = result.with_name("kept")
    result.rename(kept)
    half_written = result.with_name(f".{result.name}.partial-12345")
    shutil.copytree(kept, half_written)
    assert train(recipe) == result
    assert sorted(path.name for path in result.iterdir()) == sorted(path.name for path in kept.iterdir())
    (file,) = (path.name for path in kept.glob("*.safetensors"))
    expected, found = load_file(kept / file), load_file(result / file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert json.loads((result / "longlora.json").read_text()) == json.loads((kept / "longlora.json").read_text())
    assert not half_written.exists()


def test_a_record_of_starts_that_is_damaged(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with_checkpoint(make_recipe, 1)
    (tmp_path / "run" / "environment.json").write_text("[{")
    with open_run(make_recipe()) as run:
        assert len(json.loads((run.root / "environment.json").read_text())) == 1
