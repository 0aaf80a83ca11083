"""`longlora plan MODEL` and `longlora init`: an answer for a model, and the recipe that it found."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longlora.cli import main as cli
from longlora.config import load_recipe
from longlora.errors import ConfigError
from longlora.planner.compute import GIB, find_gpu
from longlora.planner.known_models import find_known_model, known_models
from longlora.training.draft import CARDS, Hardware, draft_recipe, draft_to_yaml, plan_recipe


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["longlora", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def on(card: str, gpus: int = 1, **named: object) -> Hardware:
    gpu = find_gpu(card)
    return Hardware(gpus=gpus, memory_gib=gpu.memory_gib, gpu=gpu, **named)  # type: ignore[arg-type]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "one.txt").write_text("the sea was calm and a ship lay still upon it. " * 300)
    return folder


@pytest.mark.parametrize("model", known_models(), ids=lambda model: model.name)
def test_every_known_model_is_planned_and_its_recipe_is_one(model, tmp_path: Path) -> None:
    """Offline; where it fits, the recipe as written takes what the plan says."""
    longer = 2 * model.config.get("text_config", model.config)["max_position_embeddings"]
    hardware = on("h200", gpus=8)
    draft = draft_recipe(model.name, longer, hardware)
    assert draft.recipe.model_name_or_path == model.hub_names[0]
    assert draft.plan.duration is not None and draft.plan.duration.seconds > 0
    attention = draft.recipe.attention  # unshifted groups need a layer in which documents are seen whole
    assert bool(attention.full_attention_interval) is not attention.shift
    assert (attention.sink_tokens, draft.recipe.data.kind) == (int(attention.shift), "text")
    written = tmp_path / "recipe.yaml"
    written.write_text(draft_to_yaml(draft, str(written)), encoding="utf-8")
    assert load_recipe(written) == draft.recipe
    assert plan_recipe(load_recipe(written), hardware) == draft.plan
    # What cannot be there for its size says so; a model of 8 billion parameters can.
    if model.parameters and model.parameters < 9e9 and longer <= 131_072:
        assert draft.plan.keeps_margin


def test_no_optimization_is_switched_on_that_is_not_needed() -> None:
    names = {card: [change.name for change in draft_recipe("llama-3-8b", 32768, on(card)).changes] for card in CARDS}
    assert names["h100-80gb"] == names["h200"] == []
    assert set(names["rtx-4090"]) > set(names["l40s"]) or not names["l40s"]
    assert "4 bits" in names["rtx-4090"]
    draft = draft_recipe(
        "llama-3-8b", 32768, on("rtx-4090"), overrides=["quantization=null", "activation_offloading=false"]
    )
    assert {"4 bits", "offloading"}.isdisjoint(change.name for change in draft.changes)
    assert not draft.plan.fits


def test_a_context_that_is_read_already_is_planned_for_conversations(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = draft_recipe("llama-3.1-8b", 65536, on("h200"))
    assert (draft.recipe.data.kind, "rope" in draft.values) == ("sft", False)
    assert run(monkeypatch, "plan", "llama-3.1-8b", "--context", 65536) == 0
    assert "already reads 65,536 tokens: planned for conversations" in capsys.readouterr().out


def test_conversations_last_for_epochs_and_full_attention_has_no_groups() -> None:
    questions = draft_recipe("llama-3-8b", 65536, on("h200"), overrides=["data.kind=sft"])
    assert (questions.recipe.num_train_epochs, "max_steps" in questions.values) == (3, False)
    yaml = draft_to_yaml(questions, "r.yaml")
    assert "# conversations (docs/finetuning.md)\n" in yaml and "million tokens" not in yaml
    for override in ("max_steps=40", "num_train_epochs=2"):
        chosen = draft_recipe("llama-3.1-8b", 65536, on("h200"), overrides=[override])
        assert {"max_steps", "num_train_epochs"} & chosen.values.keys() == {override.partition("=")[0]}
    full = draft_recipe("llama-3-8b", 65536, on("h200"), overrides=["attention.pattern='full'", "tuning=lora"])
    assert full.values["attention"] == {"pattern": "full"}
    assert ": LoRA with full attention on 1 GPU" in draft_to_yaml(full, "r.yaml")


@pytest.mark.parametrize(
    ("override", "expected", "named"),
    [
        ("max_steps=2", {"shift": False, "full_attention_interval": 6}, "unshifted groups"),
        ("attention.full_attention_interval=3", {"shift": False, "full_attention_interval": 3}, "unshifted groups"),
        ("attention.full_attention_interval=null", {"sink_tokens": 1, "full_attention_interval": None}, "S²-Attn"),
        ("attention.shift=true", {"shift": True, "sink_tokens": 1, "full_attention_interval": 6}, "S²-Attn"),
    ],
)
def test_groups_follow_what_is_chosen(override: str, expected: dict[str, Any], named: str) -> None:
    """Groups are shifted where no layer is dense, and have a sink token where they are shifted."""
    draft = draft_recipe("llama-3-8b", 65536, on("h200"), overrides=[override])
    assert draft.values["attention"] == expected
    assert f": LoRA+ with {named} on 1 GPU" in draft_to_yaml(draft, "r.yaml")


def test_a_model_whose_layers_all_have_windows_is_refused(tmp_path: Path) -> None:
    config = {**find_known_model("mistral-7b-v0.3").config, "sliding_window": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"has its own window \(4,096 tokens\)"):
        draft_recipe(str(tmp_path), 65536, on("h200"))


@pytest.mark.parametrize(
    ("model", "context", "rope"),
    [
        ("llama-3.1-8b", 262144, {"rope_type": "llama3"}),
        ("gemma-3-4b", 262144, {"rope_type": "linear"}),
        ("phi-4", 32768, {"rope_type": "theta"}),
        ("qwen3-8b", 131072, {"rope_type": "yarn", "base_context": 32768}),
        ("olmo-3-7b", 131072, {"rope_type": "yarn", "attention_factor": 1.277259}),
    ],
)
def test_positions_go_on_as_the_model_scales_them(model: str, context: int, rope: dict[str, object]) -> None:
    assert draft_recipe(model, context, on("h200")).values["rope"] == rope


def test_cards_side_by_side(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(monkeypatch, "plan", "llama-3-70b", "--context", 32768, "--gpus", 8, "--gpu-type", "h100") == 0
    shown = capsys.readouterr().out
    assert "Switched on: split the weights too: --strategy fsdp2" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.startswith(CARDS)] == list(CARDS)
    assert "rtx-4090    24" in shown and "does not fit" in shown
    assert "arXiv 2407.21783" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert run(monkeypatch, "plan", "llama-3-70b", "--context", 32768, "--gpu-type", "4090", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"] and set(found["cards"]) == set(CARDS)
    assert found["switched_on"]["quantization"] == "nf4"
    assert found["cards"]["h200"]["memory_bytes"] == 140 * GIB


@pytest.mark.slow
def test_a_recipe_for_a_model_that_is_not_here_runs_as_a_miniature(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, texts: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--context", 131072, "--gpu-type", "h200", "--data", texts, f"data.cache_dir={tmp_path / 'cache'}"]
    assert run(monkeypatch, "init", "gemma-3-4b", *options[:2], "262144", *options[2:]) == 2
    assert run(monkeypatch, "init", "olmo-3-7b", *options, "merge=false") == 0
    assert run(monkeypatch, "train", "recipe.yaml", "--miniature") == 0
    assert (tmp_path / "runs" / "olmo-3-1025-7b-128k-miniature" / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "qwen3-8"], "no recipe 'qwen3-8' and no model of that name; did you mean 'qwen3-8b'?"),
        (["plan", "llama-2-7b-longlora-8"], "did you mean 'llama-2-7b-longlora-8k'?"),
        (["plan", "qwen3-8b"], "give the context length to plan for: longlora plan qwen3-8b --context 65536"),
        (["plan", "./nowhere", "--context", 9999], "there is no model directory ./nowhere"),
        (["plan", "RUN"], "neither a recipe nor a model; it contains a recipe: RUN/recipe.yaml"),
        (["plan", "RUN", "--context", 65536], "neither a recipe nor a model; it contains a recipe: RUN/recipe.yaml"),
        (["plan", "TEXTS", "--context", 65536], "holds no model: it has neither config.json nor adapter_config.json"),
        (["plan", "qwen3-8b", "--context", 65536, "context_lenght=1"], "did you mean 'context_length'?"),
        (["plan", "qwen3-8b", "--context", 65536, "hardware.gpus=8"], "hardware.gpus cannot be overridden here"),
        (["init", "qwen3-8b", "--context", 65536, "--data", "TEXTS"], "name the GPU: --gpu-type"),
        (["init", "llama-3-70b", "--context", 65536, "--data", "TEXTS", "--memory", 24], "65,536 tokens do not fit"),
        (["init", "qwen3-8b", "--context", 65536, "--data", "./nowhere", "--memory", 80], "./nowhere"),
        (["init", "tiny", "--context", 512, "--data", "TEXTS", "--memory", 4, "--out", "HERE"], "already exists"),
    ],
)
def test_a_mistake_ends_with_status_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    texts: Path,
    arguments: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.yaml").write_text("mine")
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "recipe.yaml").write_text("")
    places = {"TEXTS": texts, "HERE": tmp_path / "here.yaml"}
    assert run(monkeypatch, *(places.get(str(argument), argument) for argument in arguments)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "here.yaml").read_text() == "mine"
    assert not (tmp_path / "recipe.yaml").exists()


def test_it_loads_nothing_heavy() -> None:
    program = """
import sys
sys.argv = ["longlora", "plan", "qwen3-8b", "--context", "65536", "--gpu-type", "4090"]
from longlora.cli.main import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "peft", "trl", "datasets", "accelerate"} & set(sys.modules)
    assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rtx-4090" in done.stdout
