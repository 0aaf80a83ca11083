"""A small random Llama, and the loss of one token computed one forward pass at a time."""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from longlora.evaluation.scoring import Window

VOCABULARY_SIZE = 101
DOCUMENT_LENGTHS = [1, 2, 5, 23, 40, 17]
TOLERANCE = 1e-5  # relative, float32


class PlainLlama(LlamaForCausalLM):
    """A model whose forward has no `logits_to_keep`."""

    def forward(self, input_ids: Tensor, use_cache: bool) -> CausalLMOutputWithPast:
        return super().forward(input_ids=input_ids, use_cache=use_cache)


def tiny_llama(of: type[LlamaForCausalLM] = LlamaForCausalLM, *, attention_dropout: float = 0.0) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        initializer_range=0.5,  # large, so that every token of the context moves the predictions
        attention_dropout=attention_dropout,
    )
    return of(config).eval()


@cache
def naive_nats(model: nn.Module, document: tuple[int, ...], start: int, target: int) -> float:
    """The negative log-probability of one token after tokens [start, target)."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([document[start:target]]), use_cache=False).logits[0, -1]
    return -torch.log_softmax(logits.double(), dim=-1)[document[target]].item()


def naive_sliding_loss(
    model: nn.Module, documents: Sequence[tuple[int, ...]], *, window: int, stride: int, late: int = 0
) -> float:
    """The definition of score="new", token by token; `late` starts every full context that many tokens too late."""
    step = min(stride, window - 1)
    nats = []
    for document in documents:
        for target in range(1, len(document)):
            start = 0
            if target >= window:
                end = window + math.ceil((target + 1 - window) / step) * step
                start = min(end, len(document)) - window + late
            nats.append(naive_nats(model, document, min(start, target - 1), target))
    return sum(nats) / len(nats)


def scored_tokens(windows: Sequence[Window]) -> list[tuple[int, int]]:
    return [(w.document, token) for w in windows for token in range(w.end - w.num_targets, w.end)]
