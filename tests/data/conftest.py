"""A tokenizer made on the spot, and a cache folder of its own for every test."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about a little.",
    "It is a truth universally acknowledged, that a single man must be in want of a wife.",
    "Let $X$ be a scheme. A sheaf of modules on $X$ is quasi-coherent if it is locally presentable.",
]

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


@pytest.fixture
def make_tokenizer() -> MakeTokenizer:
    """Build a byte-level BPE tokenizer whose EOS and post-processor are the test's choice."""

    def make(
        *, eos_token: str | None = "</s>", template: str = "<s> $A", vocab_size: int = 300
    ) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.train_from_iterator(
            LINES,
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=["<s>", "</s>", "<pad>"],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token=eos_token, pad_token="<pad>", model_max_length=16
        )

    return make


@pytest.fixture
def tokenizer(make_tokenizer: MakeTokenizer) -> PreTrainedTokenizerFast:
    """Adds BOS by itself, and has an EOS that it does not add."""
    return make_tokenizer()


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """Outside of any folder that a test reads."""
    return tmp_path / "cache"
