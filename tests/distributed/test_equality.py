"""Two processes train what one process trains, whichever strategy divides the work."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.conftest import TrainCommand, complete, losses
from transformers import AutoConfig, AutoModelForCausalLM

from longlora.config import parse_recipe
from longlora.merge import merge_adapter
from longlora.training.run import train

pytestmark = pytest.mark.cpu
TWO = ("--processes", "2")


def assert_same_result(one: Path, other: Path, *, tolerance: float = 1e-6) -> None:
    """Compare two directories of adapters or models: files, names, dtypes, values."""
    assert sorted(path.name for path in other.iterdir()) == sorted(path.name for path in one.iterdir())
    (file,) = (path.name for path in one.glob("*.safetensors"))
    expected, found = load_file(one / file), load_file(other / file)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=0)
    for name in ("adapter_config.json", "config.json", "longlora.json"):
        if (one / name).exists():
            assert _settings(other / name) == _settings(one / name)


def _settings(path: Path) -> dict[str, Any]:
    values = json.loads(path.read_text())
    # PEFT writes a set in whatever order it comes.
    return {key: sorted(value) if key == "target_modules" else value for key, value in values.items()}


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_two_processes_are_one(
    train_command: TrainCommand, recipe_values: dict[str, Any], tmp_path: Path, strategy: str
) -> None:
    train(parse_recipe(recipe_values))
    command = train_command("two", "--strategy", strategy, "--processes", "2", gradient_accumulation_steps=1)
    done = complete(command)
    assert f"2 processes ({strategy}), 2 rows in an optimizer step" in done.stderr
    assert done.stdout.count("written to") == done.stderr.count("rows of 128 tokens") == 1
    assert len(losses(tmp_path / "two")) == 10
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert_same_result(tmp_path / "one" / "adapter", tmp_path / "two" / "adapter")

    checkpoints = [tmp_path / name / "checkpoints" / "checkpoint-8" for name in ("one", "two")]
    kept = [load_file(checkpoint / "adapter_model.safetensors") for checkpoint in checkpoints]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.allclose(kept[0][name], kept[1][name], atol=1e-6, rtol=0) for name in kept[0])
    assert (checkpoints[1] / "longlora.json").exists()
    assert all((checkpoints[1] / f"rng_state_{rank}.pth").exists() for rank in (0, 1))
    start = json.loads((tmp_path / "two" / "environment.json").read_text())[-1]
    assert (start["strategy"], start["processes"]) == (strategy, 2)


@pytest.fixture
def untied_base(base_model: Path, tmp_path: Path) -> Path:
    """The base with an output layer of its own, in float16 as Llama 2's."""
    folder = tmp_path / "untied"
    shutil.copytree(base_model, folder)
    config = AutoConfig.from_pretrained(base_model, tie_word_embeddings=False)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).to(torch.float16).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"tuning": "full"}, {"new_tokens": ["<a>", "<b>"]}], ids=str)
def test_weights_that_the_main_process_alone_reads(
    train_command: TrainCommand,
    recipe_values: dict[str, Any],
    untied_base: Path,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    changes = {"model_name_or_path": str(untied_base), **changes}
    train(parse_recipe({**recipe_values, **changes}))
    done = complete(train_command("two", "--strategy", "fsdp2", *TWO, gradient_accumulation_steps=1, **changes))
    assert ("under fsdp2 it loses gradients" in done.stderr) == ("new_tokens" in changes)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    result = "model" if "tuning" in changes else "adapter"
    assert_same_result(tmp_path / "one" / result, tmp_path / "two" / result, tolerance=1e-5)


@pytest.mark.slow  # the same arithmetic by hand is in tests/training/test_sequence_parallel.py
def test_two_processes_share_each_row(
    train_command: TrainCommand, recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    """An odd number of tokens, groups that cross from one process to the other, full attention at the end."""
    data = {**recipe_values["data"], "validation_source": recipe_values["data"]["source"], "max_validation_rows": 3}
    attention = {"group_size": 50, "sink_tokens": 1, "dense_finish": 0.3}
    changes = {"context_length": 127, "attention": attention, "data": data, "eval_steps": 5}
    train(parse_recipe({**recipe_values, **changes}))
    done = complete(train_command("two", "--strategy", "fsdp2", *TWO, "--sequence-parallel", "2", **changes))
    assert "each row in 2 of 2 processes (fsdp2)" in done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert_same_result(tmp_path / "one" / "adapter", tmp_path / "two" / "adapter", tolerance=1e-5)


@pytest.mark.slow
def test_two_processes_share_rows_of_another_run(
    train_command: TrainCommand, recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    """Full attention, two rows at a time, the model's own loss, checkpointing, a rate of the embeddings' own."""
    changes = {
        "attention": {"pattern": "full"},
        "per_device_train_batch_size": 2,
        "chunked_loss": False,
        "gradient_checkpointing": True,
        "embedding_learning_rate": 2e-2,
    }
    train(parse_recipe({**recipe_values, **changes}))
    complete(train_command("two", "--strategy", "ddp", *TWO, "--sequence-parallel", "2", **changes))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert_same_result(tmp_path / "one" / "adapter", tmp_path / "two" / "adapter", tolerance=1e-5)


def test_half_the_rows_would_be_noticed(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    train(parse_recipe(recipe_values))
    half = {**recipe_values, "output_dir": str(tmp_path / "half"), "gradient_accumulation_steps": 1}
    train(parse_recipe(half))
    assert losses(tmp_path / "half") != pytest.approx(losses(tmp_path / "one"), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"tuning": "full", "learning_rate": 1e-3},
        {"tuning": "lora", "gradient_checkpointing": True},
        {"new_tokens": ["<one>", "<two>"], "embedding_learning_rate": 2e-2},
        # Adam divides a gradient near zero by its own size: on some processors, one process differs from itself by 3e-5
        # if it takes these rows one by one. SGD keeps rounding at 2e-7; half of the rows make a difference of 0.03.
        {"per_device_train_batch_size": 2, "attention": {"dense_finish": 0.5}, "optim": "sgd", "learning_rate": 0.1},
    ],
    ids=["full", "lora", "tokens", "batch"],
)
def test_every_kind_of_tuning_under_fsdp2(
    train_command: TrainCommand, recipe_values: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    train(parse_recipe({**recipe_values, **changes}))
    options = ("--strategy", "fsdp2", "--processes", "2")
    complete(train_command("two", *options, **{**changes, "gradient_accumulation_steps": 1}))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    result = "model" if changes.get("tuning") == "full" else "adapter"
    assert_same_result(tmp_path / "one" / result, tmp_path / "two" / result, tolerance=1e-5)
    if result == "adapter":
        merge_adapter(tmp_path / "two" / result, tmp_path / "merged")


@pytest.mark.slow
def test_fsdp2_in_bfloat16_keeps_float32_adapters(
    train_command: TrainCommand, recipe_values: dict[str, Any], tmp_path: Path
) -> None:
    """FSDP2 casts what it gathers, DDP and one process compute under autocast: close, not equal."""
    train(parse_recipe({**recipe_values, "dtype": "bfloat16"}))
    options = ("--strategy", "fsdp2", "--processes", "2")
    complete(train_command("two", *options, dtype="bfloat16", gradient_accumulation_steps=1))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=0.1)
    found = load_file(tmp_path / "two" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


@pytest.mark.slow
def test_two_nodes(train_command: TrainCommand, recipe_values: dict[str, Any], tmp_path: Path) -> None:
    """Two launchers, as on two machines, with a process each."""
    import socket
    import subprocess

    from tests.distributed.conftest import TIMEOUT_SECONDS, environment

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    train(parse_recipe(recipe_values))
    options = ["--strategy", "ddp", "--processes", "1", "--nodes", "2", "--main-address", "127.0.0.1"]
    command = train_command("two", *options, "--main-port", str(port), gradient_accumulation_steps=1)
    nodes = [subprocess.Popen([*command, "--node-rank", str(rank)], env=environment()) for rank in (0, 1)]
    assert [node.wait(TIMEOUT_SECONDS) for node in nodes] == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
