"""Published LoRA weights, embeddings and norms become one adapter that gives the logits of the original's merge."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.merge.adapters import logits, save_base
from tests.released.published import Original, publish, publish_consolidated, train_like_the_original
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from longlora.cli.main import app
from longlora.errors import CheckpointError, ConfigError
from longlora.models.directories import read_extension
from longlora.models.load import load_for_inference
from longlora.released import import_released


@pytest.fixture
def original(base_model: Path, tmp_path: Path, seed: int) -> Original:
    return train_like_the_original(tmp_path / "base", seed, base_model)


def test_the_published_layout(original: Original, tmp_path: Path, seed: int) -> None:
    folder = publish(original, tmp_path / "my-longlora-1k")
    report = import_released(str(folder), tmp_path / "out", base=str(original.base))
    assert report.is_adapter
    assert (report.context.length, report.context.factor, report.context.known_from) == (1024, 16.0, "its name")
    expected = logits(original.merged(16.0), seed)
    adapter, tokenizer = load_for_inference(tmp_path / "out", dtype="float32")
    torch.testing.assert_close(logits(adapter, seed), expected, atol=1e-4, rtol=1e-5)
    # 1.5 ± 0.6 and 6.4 ± 0.7 in 20 seeds.
    assert (logits(original.merged(15.0), seed) - expected).abs().max() > 1e-3
    assert (logits(original.merged(16.0, with_whole=False), seed) - expected).abs().max() > 1e-2
    assert tokenizer.model_max_length == 1024
    extension = read_extension(tmp_path / "out")
    assert extension is not None
    assert (extension.base_context, extension.context_length, extension.vocabulary_rows) == (64, 1024, None)


def test_a_base_whose_output_embedding_is_its_input_embedding(base_model: Path, tmp_path: Path, seed: int) -> None:
    original = train_like_the_original(tmp_path / "base", seed, base_model, tie_word_embeddings=True)
    original.whole["model.embed_tokens.weight"] = original.whole["model.embed_tokens.weight"][:-1].clone()
    import_released(str(publish(original, tmp_path / "x-1k")), tmp_path / "out", base=str(original.base))
    adapter, _ = load_for_inference(tmp_path / "out", dtype="float32")
    torch.testing.assert_close(logits(adapter, seed), logits(original.merged(16.0), seed), atol=1e-4, rtol=1e-5)


def test_peft_alone_loads_it(original: Original, tmp_path: Path, seed: int) -> None:
    import_released(str(publish(original, tmp_path / "x-1k")), tmp_path / "out", base=str(original.base))
    alone = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(original.base), tmp_path / "out").eval()
    torch.testing.assert_close(logits(alone, seed), logits(original.merged(1.0), seed), atol=1e-4, rtol=1e-5)


def test_merged_by_the_command_line(original: Original, tmp_path: Path, seed: int) -> None:
    folder = publish(original, tmp_path / "mine")
    run = CliRunner().invoke
    done = run(app, ["import", str(folder), str(tmp_path / "out"), "--base", str(original.base), "--context", "500"])
    assert done.exit_code == 0, done.output
    assert "that reads 500 tokens (says --context; positions divided by 8)" in done.output
    assert f"next: longlora merge {tmp_path / 'out'} {tmp_path / 'out-merged'}" in done.output.replace("\n", "")
    done = run(app, ["merge", str(tmp_path / "out"), str(tmp_path / "out-merged")])
    assert done.exit_code == 0, done.output
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "out-merged").eval()
    torch.testing.assert_close(logits(merged, seed), logits(original.merged(8.0), seed), atol=1e-4, rtol=1e-5)


def test_everything_in_one_pytorch_model(original: Original, tmp_path: Path, seed: int) -> None:
    folder = publish_consolidated(original, tmp_path / "checkpoint-1k")
    import_released(str(folder), tmp_path / "out", base=str(original.base))
    adapter, _ = load_for_inference(tmp_path / "out", dtype="float32")
    torch.testing.assert_close(logits(adapter, seed), logits(original.merged(16.0), seed), atol=1e-4, rtol=1e-5)
    assert not any("lm_head" in name or "mlp" in name for name in load_file(tmp_path / "out/adapter_model.safetensors"))


def test_embeddings_of_the_bases_own_rows_stay_whole(original: Original, tmp_path: Path, seed: int) -> None:
    original.whole["model.embed_tokens.weight"] = original.whole["model.embed_tokens.weight"][:-1]
    import_released(str(publish(original, tmp_path / "x-1k")), tmp_path / "out", base=str(original.base))
    adapter, _ = load_for_inference(tmp_path / "out", dtype="float32")
    torch.testing.assert_close(logits(adapter, seed), logits(original.merged(16.0), seed), atol=1e-4, rtol=1e-5)


def test_lora_alone_only_when_asked(original: Original, tmp_path: Path, seed: int) -> None:
    folder = publish(original, tmp_path / "x-1k")
    (folder / "trainable_params.bin").unlink()
    with pytest.raises(CheckpointError, match=r"incomplete: 8 of 8 trained embeddings and norms .*--lora-only"):
        import_released(str(folder), tmp_path / "out", base=str(original.base))
    assert not (tmp_path / "out").exists()
    import_released(str(folder), tmp_path / "out", base=str(original.base), lora_only=True)
    adapter, _ = load_for_inference(tmp_path / "out", dtype="float32")
    expected = logits(original.merged(16.0, with_whole=False), seed)
    torch.testing.assert_close(logits(adapter, seed), expected, atol=1e-4, rtol=1e-5)


def test_what_is_tuned_on_instructions_gets_its_prompt(original: Original, tmp_path: Path) -> None:
    folder = publish(original, tmp_path / "LongAlpaca-70B-lora", base_model_name_or_path=str(original.base))
    report = import_released(str(folder), tmp_path / "out")
    assert (report.base, report.context.length) == (str(original.base), 32768)
    _, tokenizer = load_for_inference(tmp_path / "out")
    assert "[INST]" in tokenizer.chat_template


@pytest.mark.parametrize("file", ["adapter_model.bin", "trainable_params.bin"])
def test_a_part_of_a_part_is_missing(original: Original, tmp_path: Path, file: str) -> None:
    folder = publish(original, tmp_path / "x-1k")
    weights = torch.load(folder / file, weights_only=True)
    dropped = sorted(weights)[3]
    torch.save({name: weight for name, weight in weights.items() if name != dropped}, folder / file)
    with pytest.raises(CheckpointError, match=f"is incomplete.*{dropped.removeprefix('base_model.model.')}"):
        import_released(str(folder), tmp_path / "out", base=str(original.base))


@pytest.mark.parametrize("file", ["adapter_model.bin", "trainable_params.bin"])
def test_a_file_that_is_cut_short(original: Original, tmp_path: Path, file: str) -> None:
    folder = publish(original, tmp_path / "x-1k")
    (folder / file).write_bytes((folder / file).read_bytes()[:-3000])
    with pytest.raises(CheckpointError, match=r"cannot be read: .*download it again"):
        import_released(str(folder), tmp_path / "out", base=str(original.base))


def test_a_base_of_another_size(original: Original, base_model: Path, tmp_path: Path, seed: int) -> None:
    folder = publish(original, tmp_path / "x-1k")
    wider = save_base(tmp_path / "wider", "llama", seed, base_model, hidden_size=48)
    with pytest.raises(CheckpointError, match=r"has shape .* and .* in .*wider: they belong to another base"):
        import_released(str(folder), tmp_path / "out", base=str(wider))
    shorter = save_base(tmp_path / "shorter", "llama", seed, base_model, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"not among the LoRA weights of .*shorter: they belong to another base"):
        import_released(str(folder), tmp_path / "out", base=str(shorter))
    deeper = save_base(tmp_path / "deeper", "llama", seed, base_model, num_hidden_layers=4)
    with pytest.raises(CheckpointError, match="8 of 32 LoRA weights"):
        import_released(str(folder), tmp_path / "out", base=str(deeper))
    other = save_base(tmp_path / "other", "llama", seed, base_model, vocab_size=301)
    with pytest.raises(
        CheckpointError,
        match=r"embed_tokens\.weight has shape \(260, 36\) .* and \(301, 36\) in .*belong to another base",
    ):
        import_released(str(folder), tmp_path / "out", base=str(other))


def test_norms_of_another_base(original: Original, tmp_path: Path) -> None:
    original.whole["model.norm.weight"] = torch.ones(7)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \(7,\)"):
        import_released(str(publish(original, tmp_path / "x-1k")), tmp_path / "out", base=str(original.base))


def test_weights_that_the_original_does_not_train(original: Original, tmp_path: Path) -> None:
    original.whole["model.layers.0.self_attn.q_norm.weight"] = torch.ones(6)
    with pytest.raises(
        CheckpointError, match=r"q_norm\.weight was published, but is not among the embeddings and norms"
    ):
        import_released(str(publish(original, tmp_path / "x-1k")), tmp_path / "out", base=str(original.base))


def test_an_output_embedding_that_was_trained_comes_along(original: Original, tmp_path: Path, seed: int) -> None:
    """As the original does it for GPT-NeoX, whose output has "embed" in its name."""
    output = 0.1 * torch.randn(260, 36)  # logits around 1, so that rounding stays far below the tolerance
    original.whole["lm_head.weight"] = output
    import_released(str(publish(original, tmp_path / "x-1k")), tmp_path / "out", base=str(original.base))
    adapter, _ = load_for_inference(tmp_path / "out", dtype="float32")
    torch.testing.assert_close(logits(adapter, seed), logits(original.merged(16.0), seed), atol=1e-4, rtol=1e-5)


def test_no_lora_weights(original: Original, tmp_path: Path) -> None:
    original.low_rank = {}
    with pytest.raises(CheckpointError, match="holds no LoRA weights"):
        import_released(str(publish(original, tmp_path / "x-1k")), tmp_path / "out", base=str(original.base))


@pytest.mark.parametrize("config", [{"bias": "all"}, {"use_dora": True}, {"peft_type": "IA3"}])
def test_another_kind_of_adapter(original: Original, tmp_path: Path, config: dict) -> None:
    folder = publish(original, tmp_path / "x-1k", **config)
    with pytest.raises(CheckpointError, match="is a different kind of adapter"):
        import_released(str(folder), tmp_path / "out", base=str(original.base))


@pytest.mark.parametrize(("rank", "error"), [("", "KeyError"), (', "r": 1e999', "OverflowError")])
def test_a_configuration_without_a_usable_rank(original: Original, tmp_path: Path, rank: str, error: str) -> None:
    folder = publish(original, tmp_path / "x-1k")
    (folder / "adapter_config.json").write_text(f'{{"target_modules": ["q_proj"]{rank}}}')
    with pytest.raises(CheckpointError, match=f"is incomplete or damaged: {error}"):
        import_released(str(folder), tmp_path / "out", base=str(original.base))


def test_the_base_must_be_known(original: Original, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"belongs to .*Llama-2-7b-hf, which was not found; give it with --base"):
        import_released(str(publish(original, tmp_path / "x-1k")), tmp_path / "out")


def test_a_base_that_is_scaled_already(original: Original, tmp_path: Path) -> None:
    folder = publish(original, tmp_path / "x-1k")
    config = json.loads((original.base / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    (original.base / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="already has scaled positions"):
        import_released(str(folder), tmp_path / "out", base=str(original.base))
