"""Published full models get the positions that they were trained with, and safetensors."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.merge.adapters import logits
from tests.released.published import Original, full_weights, publish, publish_model, scaled, train_like_the_original
from transformers import AutoTokenizer, LlamaForCausalLM

from longlora.errors import CheckpointError, ConfigError
from longlora.models.directories import read_extension
from longlora.released import import_released


@pytest.fixture
def original(base_model: Path, tmp_path: Path, seed: int) -> Original:
    return train_like_the_original(tmp_path / "base", seed, base_model)


def expected_logits(original: Original, factor: float, seed: int) -> torch.Tensor:
    """Of the 259 rows that the base has."""
    weights = {name: w[:259] if w.shape[0] == 260 else w for name, w in full_weights(original).items()}
    return logits(scaled(original.base, weights, factor), seed)


@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize(
    "config",
    [{}, {"rope_scaling": {"type": "linear", "factor": 16.0}}],
    ids=["without rope_scaling", "with rope_scaling"],
)
def test_positions_and_weights(
    original: Original, tmp_path: Path, seed: int, num_files: int, config: dict[str, Any]
) -> None:
    folder = publish_model(original, tmp_path / "mine-1k-ft", num_files=num_files, **config)
    before = logits(LlamaForCausalLM.from_pretrained(folder).eval(), seed)
    report = import_released(str(folder), tmp_path / "out")
    assert not report.is_adapter
    assert (report.context.length, report.context.factor) == (1024, 16.0)
    found = logits(LlamaForCausalLM.from_pretrained(tmp_path / "out").eval(), seed)
    torch.testing.assert_close(found[..., :259], expected_logits(original, 16.0, seed), atol=1e-4, rtol=1e-5)
    assert found.shape[-1] == 260
    assert bool((before - found).abs().max() > 1e-3) is (config == {})  # the point: without scaling it reads otherwise

    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["rope_parameters"] == {"rope_type": "linear", "factor": 16.0, "rope_theta": 10000.0}
    assert values["max_position_embeddings"] == 1024
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == num_files
    assert not list((tmp_path / "out").glob("*.bin"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 1024
    extension = read_extension(tmp_path / "out")
    assert extension is not None and (extension.base_context, extension.context_length) == (64, 1024)


def test_half_precision_stays(original: Original, tmp_path: Path) -> None:
    original.whole = {name: weight.half() for name, weight in original.whole.items()}
    folder = publish_model(original, tmp_path / "mine-1k", torch_dtype="float16")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({name: weight.half() for name, weight in weights.items()}, folder / "pytorch_model.bin")
    import_released(str(folder), tmp_path / "out")
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float16


def test_safetensors_come_along(original: Original, tmp_path: Path, seed: int) -> None:
    folder = publish_model(original, tmp_path / "mine-1k")
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "safe-1k")
    for file in folder.glob("tokenizer*"):
        (tmp_path / "safe-1k" / file.name).write_bytes(file.read_bytes())
    import_released(str(tmp_path / "safe-1k"), tmp_path / "out")
    found = logits(LlamaForCausalLM.from_pretrained(tmp_path / "out").eval(), seed)
    torch.testing.assert_close(found[..., :259], expected_logits(original, 16.0, seed), atol=1e-4, rtol=1e-5)


def test_a_configuration_that_forgot_the_pad_row(
    original: Original, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = publish_model(original, tmp_path / "mine-1k", rows=259)
    caplog.set_level(logging.WARNING, logger="longlora")
    import_released(str(folder), tmp_path / "out")
    assert "vocab_size was updated" in caplog.text
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 260


def test_the_base_tells_where_a_context_was_overwritten(original: Original, tmp_path: Path, seed: int) -> None:
    folder = publish_model(original, tmp_path / "mine-1k", max_position_embeddings=1024)
    with pytest.raises(ConfigError, match="not longer than the 1,024 of the base; give the right base"):
        import_released(str(folder), tmp_path / "out")
    report = import_released(str(folder), tmp_path / "out", base=str(original.base))
    assert report.context.factor == 16.0


def test_weights_are_missing(original: Original, tmp_path: Path) -> None:
    folder = publish_model(original, tmp_path / "mine-1k")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del weights["model.layers.1.mlp.up_proj.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"1 of 30 weights are missing, such as model\.layers\.1\.mlp\.up_proj"):
        import_released(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_is_missing(original: Original, tmp_path: Path) -> None:
    folder = publish_model(original, tmp_path / "mine-1k", num_files=3)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(CheckpointError, match="pytorch_model-00002-of-00003"):
        import_released(str(folder), tmp_path / "out")


def test_a_configuration_of_another_size(original: Original, tmp_path: Path) -> None:
    folder = publish_model(original, tmp_path / "mine-1k", intermediate_size=50)
    with pytest.raises(CheckpointError, match=r"has shape .* in config\.json"):
        import_released(str(folder), tmp_path / "out")


def test_lora_weights_in_a_models_clothes(original: Original, tmp_path: Path) -> None:
    folder = publish_model(original, tmp_path / "mine-1k")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    lora = {f"base_model.model.{name}.default.weight": weight for name, weight in original.low_rank.items()}
    torch.save({**weights, **lora}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="unmerged LoRA weights, but no adapter_config"):
        import_released(str(folder), tmp_path / "out")


def test_lora_only_of_a_model(original: Original, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a full model"):
        import_released(str(publish_model(original, tmp_path / "mine-1k")), tmp_path / "out", lora_only=True)


def test_instructed_models_get_the_papers_prompt(original: Original, tmp_path: Path) -> None:
    import_released(str(publish_model(original, tmp_path / "LongAlpaca-7B-16k")), tmp_path / "out")
    assert "[INST]" in AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert LlamaForCausalLM.from_pretrained(tmp_path / "out").config.rope_parameters["factor"] == 256.0


def test_what_is_there_is_not_overwritten(original: Original, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    for folder in (publish_model(original, tmp_path / "a-1k"), publish(original, tmp_path / "b-1k")):
        with pytest.raises(CheckpointError, match="exists already"):
            import_released(str(folder), tmp_path / "out", base=str(original.base))
