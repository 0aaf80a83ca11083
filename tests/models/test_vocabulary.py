"""New tokens take free rows first, are trained and saved in both embeddings, and nothing is resized unasked."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from longlora.config import parse_recipe
from longlora.errors import ConfigError
from longlora.merge import merge_adapter
from longlora.models.load import load_for_inference, load_for_training
from longlora.models.vocabulary import fit_vocabulary
from longlora.training import trainer as trainer_module
from longlora.training.run import train

USED = 259  # tokens of the base model's tokenizer
MakeBase = Callable[..., Path]


@pytest.fixture
def make_base(base_model: Path, tmp_path: Path) -> MakeBase:
    """Make the random base model with other rows than its tokenizer has tokens."""

    def make(*, rows: int = USED, tied: bool = True) -> Path:
        directory = Path(shutil.copytree(base_model, tmp_path / f"base-{rows}-{tied}"))
        config = AutoModelForCausalLM.from_pretrained(base_model).config
        config.vocab_size, config.tie_word_embeddings = rows, tied
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        return directory

    return make


def loaded(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("tied", [True, False])
def test_free_rows_are_used_before_anything_is_resized(make_base: MakeBase, tied: bool) -> None:
    model, tokenizer = loaded(make_base(rows=USED + 2, tied=tied))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert fit_vocabulary(model, tokenizer, new_tokens=["<doc>", "<end>"]) == [USED, USED + 1]
    assert model.config.vocab_size == USED + 2
    assert tokenizer("<doc>a<end>")["input_ids"] == [USED, tokenizer("a")["input_ids"][0], USED + 1]
    for embedding in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        torch.testing.assert_close(embedding[USED:], embedding[:USED].mean(0).expand(2, -1))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter[:USED], before[name][:USED])


@pytest.mark.parametrize("tied", [True, False])
def test_beyond_them_both_embeddings_grow_to_what_is_needed(make_base: MakeBase, tied: bool) -> None:
    model, tokenizer = loaded(make_base(rows=USED + 1, tied=tied))
    old = model.get_input_embeddings().weight.detach().clone()
    numbers = fit_vocabulary(model, tokenizer, new_tokens=["<a>", "<b>", "<c>"])
    assert numbers == [USED, USED + 1, USED + 2]
    assert model.config.vocab_size == USED + 3
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(weight[:USED], old[:USED])
    torch.testing.assert_close(weight[USED:], old[:USED].mean(0).expand(3, -1))
    assert model.get_output_embeddings().weight.shape == weight.shape
    assert (model.get_output_embeddings().weight is weight) is tied


def test_without_new_tokens_padding_is_left_alone(make_base: MakeBase) -> None:
    model, tokenizer = loaded(make_base(rows=320))
    before = model.get_input_embeddings().weight.detach().clone()
    assert fit_vocabulary(model, tokenizer) == []
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_a_token_that_was_added_before_keeps_its_row(make_base: MakeBase) -> None:
    model, tokenizer = loaded(make_base())
    fit_vocabulary(model, tokenizer, new_tokens=["<a>"])
    with torch.no_grad():
        model.get_input_embeddings().weight[USED] = 7.0
    assert fit_vocabulary(model, tokenizer, new_tokens=["<a>", "<b>"]) == [USED, USED + 1]
    assert (model.get_input_embeddings().weight[USED] == 7.0).all()


def test_a_tokenizer_larger_than_the_model_is_refused_unless_asked_for(make_base: MakeBase) -> None:
    model, tokenizer = loaded(make_base())
    tokenizer.add_tokens(["<a>", "<b>"])
    with pytest.raises(ConfigError, match=r"ids up to 260, but the model has only 259 rows for them; '<a>' has none"):
        fit_vocabulary(model, tokenizer)
    with pytest.raises(
        ConfigError, match=r"'<b>' has none\. Use the model's own tokenizer, or list all 1 such tokens in"
    ):
        fit_vocabulary(model, tokenizer, new_tokens=["<a>"])
    assert fit_vocabulary(model, tokenizer, new_tokens=["<a>", "<b>"]) == [USED, USED + 1]
    assert model.config.vocab_size == USED + 2


def recipe_values(base: Path, texts: Path, folder: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": str(base),
        "output_dir": str(folder / "run"),
        "context_length": 128,
        "max_steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "gradient_accumulation_steps": 1,
        "new_tokens": ["<doc>", "<end>"],
        "data": {"source": str(texts), "cache_dir": str(folder / "cache")},
    }


@pytest.fixture
def texts_with_new_tokens(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "text.txt").write_text("<doc>the sea was calm<end> a ship lay still " * 60, encoding="utf-8")
    return folder


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("rows", [USED, USED + 5], ids=["grown", "padded"])
def test_new_tokens_survive_training_saving_and_merging(
    make_base: MakeBase, texts_with_new_tokens: Path, tmp_path: Path, tied: bool, rows: int
) -> None:
    adapter = train(parse_recipe(recipe_values(make_base(rows=rows, tied=tied), texts_with_new_tokens, tmp_path)))
    saved = load_file(adapter / "adapter_model.safetensors")
    embeddings = {name: weight for name, weight in saved.items() if "embed_tokens" in name or "lm_head" in name}
    by_name = {name.split(".")[-2]: weight for name, weight in embeddings.items()}
    assert by_name.keys() == {"embed_tokens", "lm_head"}  # PEFT writes a tied one twice
    assert torch.equal(*by_name.values()) is tied
    assert {weight.shape[0] for weight in embeddings.values()} == {max(rows, USED + 2)}
    assert json.loads((adapter / "longlora.json").read_text())["vocabulary_rows"] == (
        USED + 2 if rows == USED else None
    )
    rows_of_new = next(iter(embeddings.values()))[USED : USED + 2]
    assert not torch.allclose(rows_of_new[0], rows_of_new[1])  # they began as one

    model, tokenizer = load_for_inference(adapter, dtype="float32")
    tokens = torch.tensor([tokenizer("<doc>the sea<end>")["input_ids"]])
    assert {USED, USED + 1} <= set(tokens[0].tolist())
    merge_adapter(adapter, tmp_path / "merged")
    merged, merged_tokenizer = loaded(tmp_path / "merged")
    assert merged_tokenizer("<doc>")["input_ids"] == [USED]
    assert merged.config.vocab_size == max(rows, USED + 2)
    with torch.no_grad():
        found = model(input_ids=tokens.to(model.device)).logits.cpu()
        torch.testing.assert_close(merged(input_ids=tokens).logits, found, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_run_with_new_tokens_is_resumed(
    make_base: MakeBase, texts_with_new_tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    values = recipe_values(make_base(tied=tied), texts_with_new_tokens, tmp_path)
    alone = parse_recipe({**values, "output_dir": str(tmp_path / "alone"), "embedding_learning_rate": 3e-2})
    train(alone)

    def interrupt(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    interrupted = parse_recipe({**values, "embedding_learning_rate": 3e-2})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module.ProgressBar, "on_step_end", interrupt)
        train(interrupted)
    train(interrupted)
    weights = [load_file(Path(r.output_dir) / "adapter" / "adapter_model.safetensors") for r in (alone, interrupted)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-6, rtol=0, msg=name)


def test_full_fine_tuning_takes_new_tokens_too(
    make_base: MakeBase, texts_with_new_tokens: Path, tmp_path: Path
) -> None:
    values = recipe_values(make_base(tied=False), texts_with_new_tokens, tmp_path)
    result = train(parse_recipe({**values, "tuning": "full", "embedding_learning_rate": 1e-3}))
    model, tokenizer = load_for_inference(result)
    assert model.config.vocab_size == USED + 2
    assert tokenizer("<end>")["input_ids"] == [USED + 1]


def test_resizing_is_said(make_base: MakeBase, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="longlora")
    values = {"output_dir": "o", "context_length": 128, "data": {"source": "x"}, "new_tokens": ["<doc>"]}
    prepared = load_for_training(parse_recipe({**values, "model_name_or_path": str(make_base())}))
    assert prepared.extension.vocabulary_rows == USED + 1
    assert "embeddings resized from 259 to 260 rows" in caplog.text
