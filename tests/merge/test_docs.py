"""What docs/export.md and docs/released.md show is run as it stands, on tiny models of the names in it."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.merge import adapters
from tests.released.published import publish, train_like_the_original
from transformers import AutoTokenizer
from typer.testing import CliRunner

from longlora.cli.main import app
from longlora.merge import merge_adapter
from longlora.models.directories import Extension, save_tokenizer, write_extension

DOCS = Path(__file__).parent.parent.parent / "docs"
# What is not ours to run here: the server, llama.cpp's programs, and the test that the page names.
OTHERS = ("vllm serve ", "python llama.cpp/convert_hf_to_gguf.py ", "llama-cli ")


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run_commands(page: str) -> list[Any]:
    """Run the commands of a page that are ours, one after another."""
    results = []
    for line in "".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words and not line.startswith(OTHERS):
            assert words[0] == "longlora", line
            results.append(CliRunner().invoke(app, words[1:]))
            assert results[-1].exit_code == 0, f"{line}: {results[-1].output}"
    return results


def test_exporting(base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = Path("runs/mine/adapter")
    adapters.longlora_adapter(base_model, adapter)
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    extension = Extension(base_model=str(base_model), base_context=64, context_length=128, rope_parameters=rope)
    write_extension(adapter, extension)
    save_tokenizer(AutoTokenizer.from_pretrained(base_model), adapter)
    merge_adapter(adapter, Path("runs/mine/merged"), check=False)  # as `longlora train` leaves it
    assert len(run_commands("export.md")) == 1
    names: dict[str, Any] = {}
    for block in blocks("export.md", "python"):
        exec(block, names)
    assert names["model"].config.max_position_embeddings == 128
    for place in (Path("mine-bf16"), Path("mine-fp16")):
        assert (place / "model.safetensors").exists()


def test_published_weights(base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.chdir(tmp_path)
    original = train_like_the_original(tmp_path / "original", seed, base_model)
    publish(original, Path("Yukang/Llama-2-7b-longlora-32k"))
    shutil.copytree(original.base, "meta-llama/Llama-2-7b-hf")
    imported, merged = run_commands("released.md")
    assert "an adapter on meta-llama/Llama-2-7b-hf that reads 32,768 tokens" in imported.output
    assert "merged into llama-2-7b-32k-merged; logits differ" in merged.output.replace("\n", " ")
