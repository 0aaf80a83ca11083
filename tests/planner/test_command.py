"""`longlora plan`: statuses, both forms of output, and that it loads nothing heavy."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import MistralConfig

from longlora.cli import main as cli
from longlora.config import Recipe, load_recipe
from longlora.errors import ConfigError
from longlora.models.load import extended_config, load_config, model_source
from longlora.planner.compute import GIB
from longlora.training.preflight import planned_run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    values = {
        "model_name_or_path": "meta-llama/Llama-2-7b-hf",
        "output_dir": "out",
        "context_length": 32768,
        "data": {"source": "texts"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["longlora", "plan", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def test_status_says_whether_it_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    assert run(monkeypatch, recipe, "--gpus", 8, "--memory", 80) == 0
    assert "It fits" in capsys.readouterr().out
    assert run(monkeypatch, recipe, "--memory", 24) == 1
    printed = capsys.readouterr()
    assert "It does not fit" in printed.out
    assert printed.err == ""


def test_json_follows_recipe_overrides_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    assert run(monkeypatch, recipe, "tuning=lora", "--json", "--gpu-type", "h200") == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["memory_bytes"] == 140 * GIB
    assert plain["trained_parameters"] == {"lora": 8_388_608}
    options = ["--gpus", 4, "--strategy", "zero2", "--memory", 80, "--json"]
    optimizations = ["optim=adamw_8bit", "activation_offloading=true", "quantization=nf4", "tiled_mlp=4096"]
    overrides = ["context_length=8192", "tuning=lora", *optimizations, "chunked_loss=false"]
    assert run(monkeypatch, recipe, *overrides, *options) == 0
    changed = json.loads(capsys.readouterr().out)
    assert (changed["context_length"], changed["num_gpus"], changed["strategy"]) == (8192, 4, "zero2")
    notes = {item["name"]: item["note"] for item in changed["items"]}
    assert "bits" in notes["frozen weights"]
    assert notes["optimizer"] == "adamw_8bit"
    assert notes["logits and loss"].startswith("all logits")
    assert notes["layer inputs"].startswith("5 at a time")


def test_every_value_of_the_recipe_that_matters_reaches_the_plan(recipe: Path) -> None:
    overrides = {
        "model_name_or_path": ("Qwen/Qwen3-8B", lambda plan: plan.architecture.name),
        "context_length": (65536, lambda plan: plan.context_length),
        "tuning": ("lora", lambda plan: plan.tuning),
        "lora.r": (5, lambda plan: plan.lora_rank),
        "lora.target_modules": ("all-linear", lambda plan: plan.lora_targets),
        "dtype": ("float32", lambda plan: plan.dtype),
        "gradient_checkpointing": (False, lambda plan: plan.gradient_checkpointing),
        "attention.group_size": (77, lambda plan: plan.group_size),
        "attention.sink_tokens": (3, lambda plan: plan.sink_tokens),
        "attention.dense_finish": (0.25, lambda plan: plan.dense_finish),
        "per_device_train_batch_size": (3, lambda plan: plan.batch_size),
        "gradient_accumulation_steps": (5, lambda plan: plan.accumulation_steps),
        "max_steps": (7, lambda plan: plan.steps),
        "tiled_mlp": (999, lambda plan: plan.tiled_mlp),
        "chunked_loss": (False, lambda plan: plan.chunked_loss),
        "activation_offloading": (False, lambda plan: plan.offload_checkpoints),
        "optim": ("paged_adamw_8bit", lambda plan: plan.optimizer),
        "quantization": ("nf4", lambda plan: "nf4" if plan.four_bit else None),
    }
    changed = load_recipe(recipe, [f"{key}={value}" for key, (value, _) in overrides.items()])
    plan = planned_run(changed)
    assert {key: read(plan) for key, (_, read) in overrides.items()} == {key: v for key, (v, _) in overrides.items()}
    norms = planned_run(load_recipe(recipe, ["lora.trainable=[norm]", "lora.target_modules=[q_proj, up_proj]"]))
    assert (norms.train_embeddings, norms.train_norms, norms.lora_targets) == (False, True, "all-linear")
    full = planned_run(load_recipe(recipe, ["attention.pattern=full"]))
    assert (full.attention, full.group_size) == ("full", None)
    shared = planned_run(load_recipe(recipe, ["sequence_parallel_size=2"]), num_gpus=2, strategy="fsdp2")
    assert shared.sequence_parallel_size == 2
    # A key that is new in the recipe either changes memory or time, and then the mapping, or is listed here.
    of_no_weight = (
        "output_dir data rope learning_rate embedding_learning_rate new_tokens lr_scheduler_type warmup_steps "
        "weight_decay adam_beta1 adam_beta2 "
        "sequence_parallel_size far_target_weight far_target_beyond "
        "hardware num_train_epochs eval_steps num_sampled_answers merge "
        "max_grad_norm logging_steps save_steps save_total_limit seed report_to trust_remote_code"
    ).split()
    mapped = {key.partition(".")[0] for key in overrides}
    assert set(Recipe.model_fields) == mapped | set(of_no_weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["context_lenght=1"], "did you mean 'context_length'?"),
        (["--gpu-type", "tpu"], "unknown GPU 'tpu'"),
        (["--gpus", 2, "--strategy", "single"], "strategy=single is for one GPU"),
        (["model_name_or_path=./nowhere"], "there is no model directory ./nowhere"),
        (["--strategy", "magic"], "magic"),
        (["--gpus", 0], "--gpus"),
        (["optim=adafactor"], "the memory of optim=adafactor is not known here"),
    ],
)
def test_a_mistake_ends_with_status_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recipe: Path,
    arguments: list[object],
    message: str,
) -> None:
    assert run(monkeypatch, recipe, *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_the_recipe_names_the_hardware_and_options_go_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    named = ["hardware.gpus=4", "hardware.memory_gib=48", "hardware.strategy=zero3", "--json"]

    def planned_for(*options: object) -> tuple[int, float, str]:
        run(monkeypatch, recipe, *named, *options)
        found = json.loads(capsys.readouterr().out)
        return found["num_gpus"], found["memory_bytes"] / GIB, found["strategy"]

    assert planned_for() == (4, 48, "zero3")
    assert planned_for("--gpus", 2) == (2, 48, "zero3")
    assert planned_for("--gpus", 1, "--memory", 24) == (1, 24, "single")
    assert planned_for("--gpu-type", "4090", "--strategy", "ddp") == (4, 24, "ddp")


def test_the_hosts_memory_decides_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    assert run(monkeypatch, recipe, "--host-memory", 16) == 0
    assert run(monkeypatch, recipe, "--host-memory", 15) == 1
    assert "The host needs 15.6 GiB of memory and has 15 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context_length": 128}, "context_length=128 must exceed the 256 tokens that the model already reads"),
        ({"rope": {"base_context": 2048}}, "context_length=1024 must exceed the 2048 tokens"),
        ({"rope": {"rope_type": "longrope", "long_factor": [1.0]}}, "long_factor"),
    ],
)
def test_it_refuses_what_training_refuses(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    changes: dict[str, object],
    message: str,
) -> None:
    values = {"model_name_or_path": "tiny", "output_dir": str(tmp_path / "out"), "context_length": 1024}
    values |= {"data": {"source": str(tmp_path)}, **changes}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert run(monkeypatch, path) == 2
    refused = capsys.readouterr().err.strip().removeprefix("longlora: ")
    assert message in refused
    config = load_config(model_source("tiny"))
    with pytest.raises(ConfigError) as error:
        extended_config(config, load_recipe(path))
    assert str(error.value) == refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sequence_parallel_size=3"], "sequence_parallel_size=3 must divide the model's 4 query heads"),
        (["sequence_parallel_size=3", "rope.rope_type=dynamic"], "rope_type=dynamic depends on the longest document"),
        (["lora.target_modules=[q_proj, lm_head]"], "'lm_head' is the output layer, which takes no low-rank update"),
        (["lora.target_modules=[nonsense]"], "'nonsense' names no linear layer of tiny; its linear layers are q_proj"),
        (["model_name_or_path=WINDOWS"], "has its own window (64 tokens), so S²-Attn cannot train it"),
        (["model_name_or_path=ADAPTER"], "is an adapter: merge it first"),
    ],
)
def test_it_refuses_models_that_training_refuses(
    tmp_path: Path, recipe: Path, changes: list[str], message: str
) -> None:
    windows, adapter = tmp_path / "windows", tmp_path / "adapter"
    MistralConfig(sliding_window=64).save_pretrained(windows)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    changes = [change.replace("WINDOWS", str(windows)).replace("ADAPTER", str(adapter)) for change in changes]
    with pytest.raises(ConfigError, match=re.escape(message)):
        planned_run(load_recipe(recipe, ["model_name_or_path=tiny", *changes]), num_gpus=3, strategy="fsdp2")


def test_conversations_may_stay_within_what_the_model_reads(recipe: Path) -> None:
    values = ["model_name_or_path=tiny", "context_length=128", "data.kind=sft"]
    assert planned_run(load_recipe(recipe, values)).context_length == 128


def test_it_loads_nothing_heavy_and_is_quick(recipe: Path) -> None:
    program = f"""
import sys, time
started = time.process_time()
sys.argv = ["longlora", "plan", {str(recipe)!r}, "--gpus", "8", "--memory", "80", "--gpu-type", "a100-80gb"]
from longlora.cli.main import main
try:
    main()
finally:
    heavy = {{"torch", "transformers", "peft", "trl", "datasets", "accelerate"}} & set(sys.modules)
    assert not heavy, heavy
    assert time.process_time() - started < 1
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "It fits" in done.stdout


def test_asking_the_hub_loads_no_torch() -> None:
    program = """
import sys
from longlora.errors import CheckpointError
from longlora.planner.architecture import find_architecture
try:
    find_architecture("nobody/knows-this-model")
except CheckpointError:
    assert "huggingface_hub" in sys.modules and "torch" not in sys.modules
else:
    raise AssertionError("offline, and yet found")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_epochs_are_planned_for_one_step(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planned_run(load_recipe(recipe, ["num_train_epochs=5"])).steps == 1
    assert run(monkeypatch, recipe, "num_train_epochs=5", "--gpu-type", "h200") == 0
    assert "num_train_epochs=5: the number of steps depends on the data" in capsys.readouterr().out
