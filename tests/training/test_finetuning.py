"""Fine-tuning on conversations, epochs, validation on the way, and what a run leaves to look at."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.training.conftest import STORY, MakeRecipe

from longlora.config import Recipe, parse_recipe
from longlora.data.encode import encode_conversation
from longlora.errors import ConfigError
from longlora.models.load import load_for_inference
from longlora.support.journal import read_json_lines
from longlora.training.run import train

ANSWERS = ["calm", "still", "a ship", "the sea", "lay upon it", "was calm"]


def lines(recipe: Recipe) -> list[dict[str, Any]]:
    return read_json_lines(Path(recipe.output_dir) / "metrics.jsonl")


def test_fine_tuning_lowers_the_loss_of_held_out_answers_and_shows_some(make_sft: MakeRecipe) -> None:
    recipe = make_sft(max_steps=12)
    adapter = train(recipe)
    validation = {line["step"]: line["eval_loss"] for line in lines(recipe) if "eval_loss" in line}
    assert list(validation) == [0, 4, 8, 12]
    assert validation[12] < validation[0] - 0.5
    root = Path(recipe.output_dir)
    samples = (root / "samples.md").read_text(encoding="utf-8")
    assert samples.count("**The model:**") == 2
    assert "## What c?" in samples and "**The data:** calm" in samples
    _, tokenizer = load_for_inference(adapter)
    assert "[INST]" in tokenizer.chat_template
    assert (root / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_says_what_was_measured(make_sft: MakeRecipe) -> None:
    recipe = make_sft()
    train(recipe)
    summary = json.loads((Path(recipe.output_dir) / "summary.json").read_text(encoding="utf-8"))
    metrics = lines(recipe)
    losses = [line["loss"] for line in metrics if "loss" in line]
    validation = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    assert summary["steps"] == summary["last_start"]["steps"] == 8
    assert (summary["first_loss"], summary["last_loss"]) == (losses[0], losses[-1])
    assert summary["last_validation_perplexity"] == pytest.approx(math.exp(validation[-1]))
    assert 2**24 < summary["peak_memory_bytes"] < 2**36
    step = summary["last_start"]["seconds"] / 8
    assert summary["last_start"]["tokens_per_second"] < 2 * 128 / step  # rows of conversations are not quite full


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_was_killed_before_its_result_looks_back_all_the_same(make_sft: MakeRecipe, dtype: str) -> None:
    recipe = make_sft(max_steps=4, save_steps=4, dtype=dtype)
    root = Path(recipe.output_dir)
    adapter = train(recipe)
    weights, samples = (adapter / "adapter_model.safetensors").read_bytes(), (root / "samples.md").read_text()
    for left in (root / "summary.json", root / "samples.md"):
        left.unlink()
    shutil.rmtree(adapter)
    train(recipe)
    assert json.loads((root / "summary.json").read_text(encoding="utf-8"))["last_start"] is None
    assert (root / "samples.md").read_text() == samples
    assert (adapter / "adapter_model.safetensors").read_bytes() == weights


def test_validation_is_measured_under_full_attention_on_answers_alone(
    make_sft: MakeRecipe, conversations: Path
) -> None:
    recipe = make_sft({"packing": False, "max_validation_rows": 3}, max_steps=2, eval_steps=2)
    adapter = train(recipe)
    model, tokenizer = load_for_inference(adapter, dtype="float32")
    losses = []
    for row in json.loads(conversations.read_text(encoding="utf-8"))[:3]:
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        encoded = encode_conversation(tokenizer, turns, context_length=128)
        tokens, labels = (torch.tensor(ids, device=model.device) for ids in (encoded.input_ids, encoded.labels))
        logits = model(input_ids=tokens[None]).logits[0, :-1]  # (T - 1, vocabulary)
        losses.append(F.cross_entropy(logits, labels[1:]).item())
    measured = [line["eval_loss"] for line in lines(recipe) if "eval_loss" in line][-1]
    assert measured == pytest.approx(sum(losses) / 3, abs=1e-4)
    with pytest.raises(AssertionError):
        assert measured == pytest.approx(sum(losses[:2]) / 2, abs=1e-4)


def test_validation_on_texts_too(make_recipe: MakeRecipe, values: dict[str, Any]) -> None:
    data = {**values["data"], "validation_source": values["data"]["source"], "max_validation_rows": 2}
    recipe = make_recipe(data=data, max_steps=4, eval_steps=2)
    train(recipe)
    assert [line["step"] for line in lines(recipe) if "eval_loss" in line] == [0, 2, 4]


def test_positions_stay_where_the_model_reads_far_enough(make_sft: MakeRecipe, tmp_path: Path) -> None:
    source = tmp_path / "short.json"
    source.write_text(json.dumps([{"instruction": "A?", "output": a} for a in ANSWERS]), encoding="utf-8")
    data = {"source": str(source), "validation_source": None}
    adapter = train(make_sft(data, context_length=48, max_steps=2, save_steps=2))
    extension = json.loads((adapter / "longlora.json").read_text(encoding="utf-8"))
    assert (extension["base_context"], extension["context_length"]) == (64, 64)
    assert extension["rope_parameters"]["rope_type"] == "default"
    model, tokenizer = load_for_inference(adapter)
    assert (model.config.max_position_embeddings, tokenizer.model_max_length) == (64, 64)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 9), (2.5, 23)])
def test_epochs_settle_the_number_of_steps(
    make_sft: MakeRecipe, values: dict[str, Any], epochs: float, steps: int
) -> None:
    del values["max_steps"]  # 18 conversations, two a step
    recipe = make_sft(
        {"packing": False, "validation_source": None}, num_train_epochs=epochs, attention={"dense_finish": 0.5}
    )
    train(recipe)
    assert [line["step"] for line in lines(recipe)] == list(range(1, steps + 1))


def test_epochs_and_steps_exclude_each_other(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="max_steps=8 and num_train_epochs=2: give one"):
        parse_recipe({**values, "num_train_epochs": 2})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"cross_document_attention": True}, "conversations .* never attend to each other"),
        ({"kind": "text", "packing": False}, "data.packing=false belongs to data.kind=sft"),
    ],
)
def test_settings_that_contradict_the_kind(make_sft: MakeRecipe, data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_sft(data)


def test_accumulation_over_unlike_lengths_is_one_large_batch(make_sft: MakeRecipe, tmp_path: Path) -> None:
    """Four conversations whose answers have 1 to 60 tokens, in one step: each token of an answer counts the same."""
    source = tmp_path / "four.json"
    answers = ["a", "the sea", "a ship lay still", STORY + "was calm"]
    source.write_text(json.dumps([{"instruction": "A?", "output": a} for a in answers]), encoding="utf-8")
    firsts = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        recipe = make_sft(
            {"source": str(source), "packing": False, "validation_source": None},
            output_dir=str(tmp_path / f"{batch}x{accumulation}"),
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        train(recipe)
        firsts.append(lines(recipe)[0])
    for other in firsts[1:]:
        assert other["loss"] == pytest.approx(firsts[0]["loss"], abs=1e-6)
        assert other["grad_norm"] == pytest.approx(firsts[0]["grad_norm"], rel=1e-5)


def test_packed_conversations_train_as_separate_ones_do(make_sft: MakeRecipe, tmp_path: Path) -> None:
    """One step over the same conversations, in one row or in six."""
    source = tmp_path / "six.json"
    source.write_text(json.dumps([{"instruction": "A?", "output": a} for a in ANSWERS]), encoding="utf-8")
    firsts = []
    for packing, rows in ((True, 1), (False, 6)):
        recipe = make_sft(
            {"source": str(source), "packing": packing, "validation_source": None},
            output_dir=str(tmp_path / f"packing-{packing}"),
            max_steps=1,
            gradient_accumulation_steps=rows,
            context_length=256,
        )
        train(recipe)
        firsts.append(lines(recipe)[0])
    assert firsts[0]["loss"] == pytest.approx(firsts[1]["loss"], abs=1e-4)
    assert firsts[0]["grad_norm"] == pytest.approx(firsts[1]["grad_norm"], rel=1e-3)
