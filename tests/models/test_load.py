"""A checkpoint becomes a model, or a message that says what is wrong with it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from longlora.config import parse_recipe
from longlora.errors import CheckpointError, ConfigError
from longlora.evaluation.subject import base_of
from longlora.models import load as model_module
from longlora.models.load import (
    compute_dtype,
    load_config,
    load_for_inference,
    load_for_training,
    load_tokenizer,
    model_source,
)
from longlora.training import trainer


@pytest.fixture
def copied(base_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_model, tmp_path / "copy"))


def test_a_model_is_loaded_to_read(base_model: Path) -> None:
    model, tokenizer = load_for_inference(base_model)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert tokenizer.decode(tokenizer("héllo")["input_ids"]) == "héllo"


def test_weights_that_are_cut_short(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot load the weights"):
        load_for_inference(copied)


def test_weights_that_are_missing(copied: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 weights are missing, the first is model\.layers\.1\.mlp"):
        load_for_inference(copied)


def test_a_configuration_that_is_broken(copied: Path) -> None:
    (copied / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot load the configuration"):
        load_config(str(copied))


def test_a_tokenizer_that_is_missing(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="cannot load the tokenizer"):
        load_tokenizer(str(copied))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "~/nowhere"])
def test_a_path_where_nothing_is(name: str) -> None:
    with pytest.raises(CheckpointError, match="there is no model directory"):
        model_source(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no model"):
        model_source(str(tmp_path))


def test_an_adapter_is_merged_before_it_is_trained_on(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    recipe = {"model_name_or_path": str(tmp_path), "output_dir": "x", "context_length": 128, "data": {"source": "x"}}
    with pytest.raises(ConfigError, match="is an adapter: merge it first"):
        load_for_training(parse_recipe(recipe))


@pytest.mark.parametrize("content", ["{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_that_names_no_base(tmp_path: Path, content: str) -> None:
    """As PEFT writes it for a model that was made of a configuration alone."""
    (tmp_path / "adapter_config.json").write_text(content)
    for use in (load_for_inference, base_of):
        with pytest.raises(CheckpointError, match="names no base model; set base_model_name_or_path there"):
            use(str(tmp_path))


def test_a_file_is_no_model(base_model: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file"):
        model_source(str(base_model / "config.json"))


def test_a_hub_name_is_left_to_the_hub() -> None:
    assert model_source("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    with pytest.raises(CheckpointError, match="neither from a directory of that name nor from the hub"):
        load_config("meta-llama/Llama-2-7b-hf")


def test_the_tiny_model_ships_with_the_package() -> None:
    model, tokenizer = load_for_inference("tiny")
    assert model.config.max_position_embeddings == 256
    assert 1_500_000 <= sum(p.numel() for p in model.parameters()) <= 4_000_000
    text = "def main():\n    return None\n"
    tokens = torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
    assert tokenizer.decode(tokens[0], skip_special_tokens=True) == text
    loss = model(input_ids=tokens, labels=tokens).loss
    assert loss < 4.0  # a model that knows nothing has log(2048) = 7.6


def test_dtypes_by_name() -> None:
    assert compute_dtype("float16") == torch.float16
    if not torch.cuda.is_available():
        assert compute_dtype("auto") == torch.float32


@pytest.mark.parametrize("pattern", ["s2", "full"])
def test_a_model_that_s2_cannot_serve_is_refused_or_trains_with_its_own_attention(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    def refuse(config: object) -> None:
        raise ConfigError("this architecture goes its own way")

    monkeypatch.setattr(model_module, "check_s2_reaches", refuse)
    values = {"model_name_or_path": str(base_model), "output_dir": str(tmp_path), "context_length": 128}
    recipe = parse_recipe({**values, "data": {"source": "x"}, "attention": {"pattern": pattern}})
    if pattern == "s2":
        with pytest.raises(ConfigError, match="goes its own way"):
            load_for_training(recipe)
    else:
        assert load_for_training(recipe).model.config._attn_implementation == "sdpa"


def test_attention_dropout_is_set_to_zero_with_a_warning(
    base_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in Seed-OSS, whose published configuration has 0.1."""
    model_directory = tmp_path / "model"
    shutil.copytree(base_model, model_directory)
    config = json.loads((model_directory / "config.json").read_text(encoding="utf-8"))
    (model_directory / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}), encoding="utf-8")
    values = {"model_name_or_path": str(model_directory), "output_dir": str(tmp_path), "context_length": 128}
    with caplog.at_level("WARNING", logger="longlora"):
        model = load_for_training(parse_recipe({**values, "dtype": "float32", "data": {"source": "x"}})).model
    assert "attention_dropout=0.1 in the model's config is set to 0" in caplog.text
    model.train()(input_ids=torch.zeros(1, 128, dtype=torch.long))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of what is mapped")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_weights_in_the_dtype_of_compute_stay_in_their_file(
    base_model: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    """Processes share such pages; the plan counts no memory for them."""
    shutil.copytree(base_model, folder := tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(base_model).to(stored).save_pretrained(folder)
    values = {"model_name_or_path": str(folder), "output_dir": str(tmp_path / "run"), "data": {"source": "x"}}
    recipe = parse_recipe({**values, "context_length": 128, "tuning": "lora", "dtype": "bfloat16"})
    model = load_for_training(recipe).model
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(folder / "model.safetensors")):
            mapped.append(range(*(int(address, 16) for address in line.partition(" ")[0].split("-"))))
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    in_file = [any(parameter.data_ptr() in addresses for addresses in mapped) for parameter in frozen]
    assert in_file == [stored == torch.bfloat16] * len(frozen)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_trained_output_layer_that_fsdp_divides_is_told(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_tied: bool
) -> None:
    shutil.copytree(base_model, folder := tmp_path / "model")
    config = AutoConfig.from_pretrained(base_model, tie_word_embeddings=is_tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    values = {"model_name_or_path": str(folder), "output_dir": str(tmp_path / "run"), "data": {"source": "x"}}
    model = load_for_training(parse_recipe({**values, "context_length": 128, "new_tokens": ["<a>"]})).model
    assert trainer._why_not_divided(model) is None
    monkeypatch.setattr(trainer, "current_strategy", lambda: "fsdp2")
    assert bool(trainer._why_not_divided(model)) is not is_tied


@pytest.mark.parametrize(
    ("is_divided", "is_tied", "quantization", "reads_once"),
    [
        (True, False, None, True),
        (False, False, None, False),
        (True, True, None, False),
        (True, False, "nf4", False),
    ],
)
def test_the_main_process_alone_reads_what_is_divided_later(
    base_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_divided: bool,
    is_tied: bool,
    quantization: str | None,
    reads_once: bool,
) -> None:
    class ReadError(Exception):
        pass

    def read(*positional: object, **named: object) -> None:
        calls.append("read")
        raise ReadError

    calls: list[str] = []
    monkeypatch.setattr(model_module, "enable_fsdp_ram_efficient_loading", lambda: calls.append("once"))
    monkeypatch.setattr(model_module, "nf4_arguments", lambda dtype: {})
    monkeypatch.setattr(model_module, "load_weights", read)
    AutoConfig.from_pretrained(base_model, tie_word_embeddings=is_tied).save_pretrained(tmp_path)
    values = {"model_name_or_path": str(tmp_path), "output_dir": str(tmp_path / "run"), "data": {"source": "x"}}
    recipe = parse_recipe({**values, "context_length": 128, "quantization": quantization})
    with pytest.raises(ReadError):
        load_for_training(recipe, is_divided_later=is_divided)
    assert calls == ["once"] * reads_once + ["read"]
