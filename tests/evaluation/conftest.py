"""What the tests of perplexity share: one model and documents of odd lengths."""

import numpy as np
import pytest
from tests.evaluation.llama import DOCUMENT_LENGTHS, VOCABULARY_SIZE, tiny_llama
from transformers import LlamaForCausalLM


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="module")
def documents() -> list[tuple[int, ...]]:
    generator = np.random.default_rng(0)
    return [tuple(generator.integers(0, VOCABULARY_SIZE, size=length).tolist()) for length in DOCUMENT_LENGTHS]
