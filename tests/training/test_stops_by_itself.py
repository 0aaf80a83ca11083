"""What was fine-tuned ends its answers by itself, wherever it is asked and whatever end its base names."""

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from openai import OpenAI
from tests.corpus.qa.test_journal import a_call
from tests.templates import CHATML, LLAMA_2, with_template
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from longlora.config import parse_recipe
from longlora.corpus.qa.answering_model import LocalModel
from longlora.inference.chat_model import ChatSettings, load_chat_model
from longlora.inference.conversation import Chat
from longlora.merge import merge_adapter
from longlora.serving.served_model import servable
from longlora.training.run import train

QUESTION, ANSWER = "Who?", "Paris."
ROWS = [{"instruction": QUESTION, "output": ANSWER}, {"instruction": "Where?", "output": "At sea."}]
OTHER_END = 2  # what the base's generation_config names: never an end of what is learned here


@dataclass(frozen=True)
class Tuned:
    """One fine-tuning of a tiny base."""

    end: str
    root: Path

    @property
    def places(self) -> dict[str, Path]:
        return {name: self.root / name for name in ("run/adapter", "merged", "full/model")}


@pytest.fixture(
    scope="module",
    params=[(CHATML, "<|im_end|>"), (None, "</s>"), (LLAMA_2, "</s>")],
    ids=["ChatML", "the paper's", "Llama 2"],
)
def tuned(request: pytest.FixtureRequest, base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    template, end = request.param
    root = tmp_path_factory.mktemp("tuned")
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    with_template(tokenizer, template)
    tokenizer.save_pretrained(root / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(root / "base")
    (root / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": OTHER_END, "temperature": 0.6}))
    rows = root / "rows.json"
    rows.write_text(json.dumps(ROWS))
    for tuning, output in (("lora+", "run"), ("full", "full")):
        train(
            parse_recipe(
                {
                    "model_name_or_path": str(root / "base"),
                    "output_dir": str(root / output),
                    "context_length": 128,
                    "data": {"kind": "sft", "source": str(rows), "cache_dir": str(root / "cache")},
                    "tuning": tuning,
                    "max_steps": 50,
                    "save_steps": 50,
                    "warmup_steps": 0,
                    "gradient_accumulation_steps": 1,
                    "gradient_checkpointing": False,
                    "learning_rate": 1e-2,
                    "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
                    "attention": {"pattern": "full"},
                    "dtype": "float32",
                }
            )
        )
    merge_adapter(root / "run" / "adapter", root / "merged")
    return Tuned(end=end, root=root)


def generated(model_directory: Path) -> str:
    """What plain transformers says."""
    model = AutoModelForCausalLM.from_pretrained(model_directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
    return tokenizer.decode(written)


def assert_ends(written: str, end: str) -> None:
    """The answer that was learned, the end of its turn, and nothing more."""
    assert written.endswith(end)
    assert written.removesuffix(end).strip() == ANSWER


@pytest.mark.parametrize("name", ["merged", "full/model"])
def test_in_plain_transformers(tuned: Tuned, name: str) -> None:
    assert_ends(generated(tuned.places[name]), tuned.end)


@pytest.mark.parametrize("name", ["run/adapter", "merged", "full/model"])
def test_in_chat(tuned: Tuned, name: str) -> None:
    chat_model = load_chat_model(str(tuned.places[name]))
    settings = ChatSettings(max_new_tokens=20)
    answer, _ = Chat(chat_model, settings).ask(QUESTION)
    assert "".join(answer).strip() == ANSWER
    assert answer.finished


@pytest.mark.parametrize("name", ["run/adapter", "merged", "full/model"])
def test_the_saved_settings_name_every_end(tuned: Tuned, name: str) -> None:
    saved = json.loads((tuned.places[name] / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tuned.places[name])
    assert set(saved["eos_token_id"]) == {OTHER_END, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(tuned.end)}
    assert saved["do_sample"] is True and saved["temperature"] == 0.6


def test_in_make_qa(tuned: Tuned) -> None:
    call = a_call(prompt=QUESTION, max_tokens=20)
    answer = LocalModel(str(tuned.places["merged"])).generate(call)
    assert answer.text.strip() == ANSWER
    assert answer.finish == "stop"


def test_what_is_served_names_every_end(tuned: Tuned, tmp_path: Path) -> None:
    """A server reads the folder as plain transformers does; one that was merged by others gains what it lacks."""
    merged = tuned.places["merged"]
    own, digests = merged / "generation_config.json", merged / "digests.json"
    kept, sealed = own.read_text(), digests.read_text()
    try:
        digests.unlink()
        own.write_text(json.dumps({"eos_token_id": OTHER_END}))
        with servable(str(merged)) as served:
            assert_ends(generated(served.folder), tuned.end)
        assert json.loads(own.read_text()) == {"eos_token_id": OTHER_END}
    finally:
        own.write_text(kept)
        digests.write_text(sealed)
    with servable(str(merged)) as served:
        assert (served.folder / "generation_config.json").is_symlink()


@contextmanager
def served(model: Path, cache: Path) -> Iterator[str]:
    """A started server's address."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "longlora.cli", "serve", str(model), "--engine", "transformers", "--name", "mine"]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 240)[0], "no line within four minutes"
        yield process.stdout.readline().split()[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run/adapter", "merged"])
def test_over_http(tuned: Tuned, name: str, tmp_path: Path) -> None:
    with served(tuned.places[name], tmp_path) as url:
        asked = OpenAI(base_url=url, api_key="none", max_retries=0).chat.completions
        messages = [{"role": "user", "content": QUESTION}]
        chosen = asked.create(model="mine", messages=messages, max_tokens=20, temperature=0).choices[0]
        streamed = list(asked.create(model="mine", messages=messages, max_tokens=20, temperature=0, stream=True))
    assert (chosen.message.content or "").strip() == ANSWER
    assert chosen.finish_reason == "stop"
    parts = [part.choices[0] for part in streamed if part.choices]
    assert "".join(part.delta.content or "" for part in parts).strip() == ANSWER
    assert [part.finish_reason for part in parts if part.finish_reason] == ["stop"]
