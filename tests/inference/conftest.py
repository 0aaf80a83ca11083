"""A small random model to talk with, whose every token of context moves what it says."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from longlora.inference.chat_model import ChatModel


def random_llama(seed: int, *, context: int = 512, **more: object) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **more,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def chat_model(base_model: Path, seed: int) -> ChatModel:
    """A random Llama of 512 tokens of context that never ends an answer by itself, and a tokenizer of bytes."""
    tokenizer = copy.deepcopy(AutoTokenizer.from_pretrained(base_model))
    model = random_llama(seed)
    model.generation_config.eos_token_id = None
    model.lm_head.weight.data[tokenizer.eos_token_id] = 0  # the paper's prompt ends answers with it
    return ChatModel(model=model, tokenizer=tokenizer, name="random")
