"""Logits in pieces are the model's own logits, and no more rows of them are made at once than a piece has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.evaluation.llama import PlainLlama, tiny_llama
from torch import nn
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

from longlora.evaluation import logits as logits_module
from longlora.evaluation.logits import Model
from longlora.evaluation.perplexity import loss_by_position, perplexity
from longlora.models.generation import transformers_model

PIECE = 5
SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}


class DoublesItsLogits(LlamaForCausalLM):
    """Does to its logits what no list of families knows of."""

    def forward(self, input_ids: torch.Tensor, use_cache: bool, logits_to_keep: int = 0) -> Any:
        output = super().forward(input_ids=input_ids, use_cache=use_cache, logits_to_keep=logits_to_keep)
        output.logits = 2 * output.logits
        return output


def adapter() -> Model:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    model = get_peft_model(tiny_llama(), config).eval()
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.mul_(1.5)
    return model


MODELS: dict[str, tuple[Callable[[], Model], bool]] = {
    "llama": (tiny_llama, True),
    "adapter with its own output layer": (adapter, True),
    "gemma 2 caps its logits": (lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES)).eval(), False),
    "cohere scales its logits": (lambda: CohereForCausalLM(CohereConfig(**SIZES)).eval(), False),
    "doubles its logits": (lambda: tiny_llama(DoublesItsLogits), False),
    "keeps all its logits": (lambda: tiny_llama(PlainLlama), False),
}


@pytest.mark.parametrize("name", MODELS)
def test_pieces_are_the_models_own_logits(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make, in_pieces = MODELS[name]
    torch.manual_seed(seed)
    model = make()
    documents = torch.randint(1, 101, (3, 14)).tolist()
    options: dict[str, Any] = {"length": 14, "num_buckets": 13, "batch_size_tokens": 28, "show_progress": False}
    whole = [bucket.loss for bucket in loss_by_position(model, documents, **options)]
    monkeypatch.setattr(logits_module, "ROWS_PER_PIECE", PIECE)
    rows: list[int] = []
    output: nn.Module = transformers_model(model).get_output_embeddings()
    hook = output.register_forward_hook(lambda _module, _inputs, result: rows.append(result.shape[-2]))
    pieces = [bucket.loss for bucket in loss_by_position(model, documents, **options)]
    hook.remove()
    assert pieces == pytest.approx(whole, rel=1e-5)
    assert len(set(whole)) == 13
    assert (max(rows) <= PIECE) == in_pieces
    shifted = [*whole[1:], whole[0]]
    assert pieces != pytest.approx(shifted, rel=1e-5)  # a piece that is one row late would be noticed


def test_perplexity_in_pieces(monkeypatch: pytest.MonkeyPatch, documents: list[tuple[int, ...]]) -> None:
    model = tiny_llama()
    whole = perplexity(model, documents, window=9, stride=4, batch_size=3, show_progress=False)
    monkeypatch.setattr(logits_module, "ROWS_PER_PIECE", 3)
    pieces = perplexity(model, documents, window=9, stride=4, batch_size=3, show_progress=False)
    assert (pieces.loss, pieces.standard_error) == pytest.approx((whole.loss, whole.standard_error), rel=1e-6)
    assert (pieces.num_tokens, pieces.num_windows) == (whole.num_tokens, whole.num_windows)


def test_the_decoder_is_read_once_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits_module, "ROWS_PER_PIECE", 3)
    model = tiny_llama()
    calls: list[int] = []
    hook = model.model.register_forward_hook(lambda *_: calls.append(1))
    loss_by_position(model, [list(range(12))], length=12, num_buckets=2, show_progress=False)
    hook.remove()
    assert len(calls) == 1
    assert not model.model._forward_hooks
