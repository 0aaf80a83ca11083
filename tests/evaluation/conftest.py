"""What the tests of evaluation share: a model and documents of odd lengths, tokenizers, the command line."""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.llama import DOCUMENT_LENGTHS, VOCABULARY_SIZE, tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from longlora.cli import main as cli
from longlora.evaluation.haystack import names, sentence
from longlora.models.load import load_for_inference
from longlora.tiny import tiny_model_directory


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="module")
def documents() -> list[tuple[int, ...]]:
    generator = np.random.default_rng(0)
    return [tuple(generator.integers(0, VOCABULARY_SIZE, size=length).tolist()) for length in DOCUMENT_LENGTHS]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte: numbers are told apart from words by nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def _corpus() -> list[str]:
    rng = random.Random(0)
    sentences = [sentence(rng) for _ in range(300)]
    return sentences + [f"The code of the {name} is {rng.randrange(10**6)}." for name in names(rng, 300)]


def words_tokenizer() -> PreTrainedTokenizerFast:
    """Merged digits, and spaces that belong to the word behind them, as GPT-2 and Llama 3 have it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def pieces_tokenizer() -> PreTrainedTokenizerFast:
    """A mark before every word, the first one too, and BOS in front: what Llama 2's tokenizer does."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", *fallback], show_progress=False
    )
    backend.train_from_iterator([*_corpus(), "0 1 2 3 4 5 6 7 8 9 : ? , ' \n"], trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    return tokenizer


@pytest.fixture(scope="session", params=["bytes", "words", "pieces", "tiny"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Tokenizers that treat spaces and digits in different ways."""
    if request.param == "tiny":
        return AutoTokenizer.from_pretrained(tiny_model_directory())
    return {"bytes": byte_tokenizer, "words": words_tokenizer, "pieces": pieces_tokenizer}[request.param]()


@pytest.fixture(scope="session")
def adapter(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT adapter that longlora did not make."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model, _ = load_for_inference(base_model)
    directory = tmp_path_factory.mktemp("adapters") / "mine"
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(directory)
    return directory


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; give its status and what it printed to stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["longlora", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capfd.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return call
