"""A merged model is the adapter's, and needs neither PEFT nor longlora."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.merge import adapters
from transformers import AutoTokenizer
from typer.testing import CliRunner

from longlora.cli.main import app
from longlora.config import parse_recipe
from longlora.errors import CheckpointError, ConfigError
from longlora.merge import merge_adapter, streaming
from longlora.models import older_keys
from longlora.models.directories import Extension, write_extension
from longlora.models.load import load_for_inference
from longlora.training.run import train


@pytest.fixture(scope="module")
def adapter(base_model: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    values: dict[str, Any] = {
        "model_name_or_path": str(base_model),
        "output_dir": str(folder / "run"),
        "context_length": 128,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "gradient_accumulation_steps": 1,
        "data": {"source": str(text_folder), "cache_dir": str(folder / "cache")},
    }
    return train(parse_recipe(values))


def test_the_merged_model_agrees_with_the_adapter(adapter: Path, tmp_path: Path) -> None:
    report = merge_adapter(adapter, tmp_path / "merged")
    assert report.largest_difference < 1e-4
    assert report.probe_tokens == 128
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["max_position_embeddings"], config["rope_parameters"]["factor"]) == (128, 2.0)
    assert config["tie_word_embeddings"] is True


def test_the_merged_model_loads_without_longlora(adapter: Path, tmp_path: Path) -> None:
    merge_adapter(adapter, tmp_path / "merged")
    program = """
import sys
sys.modules["longlora"] = sys.modules["peft"] = None  # an import of either fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
AutoTokenizer.from_pretrained(sys.argv[1])
torch.save(model(input_ids=torch.arange(100)[None]).logits, sys.argv[2])
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "merged", tmp_path / "logits.pt"], check=True)
    with torch.no_grad():
        model, _ = load_for_inference(adapter, dtype="float32")
        expected = model(input_ids=torch.arange(100, device=model.device)[None]).logits.cpu()
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-4, rtol=0)


def test_older_readers_find_their_keys(adapter: Path, tmp_path: Path) -> None:
    merge_adapter(adapter, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["rope_scaling"] == {"rope_type": "linear", "type": "linear", "factor": 2.0}
    again = load_for_inference(tmp_path / "merged")[0].config
    assert {**again.rope_parameters, "type": "linear"} == {**config["rope_parameters"], "type": "linear"}
    done = CliRunner().invoke(app, ["merge", str(adapter), str(tmp_path / "new"), "--no-v4-rope", "--no-check"])
    assert done.exit_code == 0, done.output
    assert "rope_scaling" not in json.loads((tmp_path / "new" / "config.json").read_text())


def test_older_keys_that_would_change_what_is_read_are_not_written(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}
    monkeypatch.setattr(older_keys, "older_keys", lambda *_, **__: wrong)
    with pytest.raises(ConfigError, match="would be read with positions"):
        merge_adapter(adapter, tmp_path / "merged", older_readers=True)
    assert list(tmp_path.iterdir()) == []
    merge_adapter(adapter, tmp_path / "merged")
    assert "transformers 4 would misread the positions of this model" in caplog.text
    assert "rope_scaling" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_each_reader_that_misreads_the_positions_is_named(
    base_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapters.longlora_adapter(base_model, tmp_path / "adapter")
    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    extension = Extension(
        base_model=str(base_model), base_context=64, context_length=128, rope_parameters=yarn | {"truncate": False}
    )
    write_extension(tmp_path / "adapter", extension)
    with pytest.raises(ConfigError, match=r"truncate: false, .* merge without --v4-rope"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged", older_readers=True)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    said = [record.getMessage() for record in caplog.records if "misread" in record.getMessage()]
    assert [line.split(" would")[0] for line in said] == ["transformers 4", "llama.cpp"]
    assert "rope_scaling" not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_the_tokenizer_is_written_for_transformers_4_too(adapter: Path, tmp_path: Path) -> None:
    merge_adapter(adapter, tmp_path / "merged", check=False)
    for folder in (adapter, tmp_path / "merged"):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_merge_that_goes_wrong_is_noticed_and_leaves_nothing(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = streaming.changed

    def wrong(weight: Any, change: Any, *rest: Any) -> Any:
        result = original(weight, change, *rest)
        return result * 1.01 if change else result

    monkeypatch.setattr(streaming, "changed", wrong)
    with pytest.raises(CheckpointError, match="does not agree with the adapter"):
        merge_adapter(adapter, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_no_adapter(base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no adapter"):
        merge_adapter(base_model, tmp_path / "merged")


def test_an_adapter_that_is_cut_short(adapter: Path, tmp_path: Path) -> None:
    import shutil

    broken = Path(shutil.copytree(adapter, tmp_path / "broken"))
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"is not as it was written: adapter_model\.safetensors"):
        merge_adapter(broken, tmp_path / "merged")
    (broken / "digests.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="cannot be read"):
        merge_adapter(broken, tmp_path / "merged")


def test_bfloat16_within_its_noise(adapter: Path, tmp_path: Path) -> None:
    report = merge_adapter(adapter, tmp_path / "merged", dtype="bfloat16")
    assert report.relative_difference < 0.05


def test_the_command_says_that_nothing_was_compared(adapter: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["merge", str(adapter), str(tmp_path / "merged"), "--no-check"])
    assert done.exit_code == 0, done.output
    assert "not compared with the adapter" in done.output


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["whole", "low rank"],
)
def test_a_foreign_adapter_with_a_grown_vocabulary(base_model: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    grown = adapters.load(base_model)
    grown.resize_token_embeddings(262, mean_resizing=False)
    made = get_peft_model(grown, LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path=str(base_model), **config))
    adapters.save_random(made, tmp_path / "adapter")
    refusal = r"embedding of 262 rows, but its base .* has 259: .*resize_token_embeddings\(262\)"
    for check in (True, False):
        with pytest.raises(CheckpointError, match=refusal):
            merge_adapter(tmp_path / "adapter", tmp_path / "merged", check=check)
    if "modules_to_save" in config:
        with pytest.raises(CheckpointError, match=r"embedding of 262 rows"):
            load_for_inference(tmp_path / "adapter")

    # The remedy, as the message says it.
    remedied = adapters.load(base_model)
    remedied.resize_token_embeddings(262)
    remedied.save_pretrained(tmp_path / "grown")
    AutoTokenizer.from_pretrained(base_model).save_pretrained(tmp_path / "grown")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "grown")}))
    assert merge_adapter(tmp_path / "adapter", tmp_path / "merged").largest_difference < 1e-3


def test_an_adapter_of_another_base(base_model: Path, tmp_path: Path) -> None:
    other = adapters.save_base(
        tmp_path / "other", "llama", 0, base_model, num_hidden_layers=2, tie_word_embeddings=True
    )
    adapters.longlora_adapter(other, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base_model)}))
    with pytest.raises(CheckpointError, match="belongs to another base"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(CheckpointError, match="size mismatch for"):
        load_for_inference(tmp_path / "adapter")
