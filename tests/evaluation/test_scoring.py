"""Losses do not depend on how the model is held: adapter, dtype, mode, chunks, kinds of documents."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tests.evaluation.llama import (
    TOLERANCE,
    PlainLlama,
    tiny_llama,
)
from transformers import LlamaForCausalLM

from longlora.errors import CheckpointError
from longlora.evaluation.perplexity import perplexity, perplexity_by_length


def test_only_the_logits_needed_are_computed(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    rows: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda _module, _inputs, output: rows.append(output.shape[1]))
    perplexity_by_length(model, documents, lengths=[16], stride=3, show_progress=False)
    hook.remove()
    assert set(rows) == {4}


def test_a_model_without_logits_to_keep(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    plain = perplexity(tiny_llama(PlainLlama), documents, window=9, stride=4, show_progress=False)
    with_logits = perplexity(model, documents, window=9, stride=4, show_progress=False)
    assert (plain.loss, plain.standard_error) == pytest.approx((with_logits.loss, with_logits.standard_error), rel=1e-6)
    assert (plain.num_tokens, plain.num_windows) == (with_logits.num_tokens, with_logits.num_windows)


def test_probabilities_are_float32_in_a_bfloat16_model(documents: list[tuple[int, ...]]) -> None:
    model = tiny_llama().to(torch.bfloat16)
    document = documents[4]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([document])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(document[1:])).item()
    rounded = torch.nn.functional.cross_entropy(logits, torch.tensor(document[1:])).item()
    result = perplexity(model, [document], window=40, stride=40, show_progress=False)
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert abs(rounded - expected) > 1e-5 * expected


def test_dropout_is_off_and_every_module_gets_its_mode_back(documents: list[tuple[int, ...]]) -> None:
    model = tiny_llama(attention_dropout=0.5)
    expected = perplexity(model, documents, window=9, stride=4, show_progress=False)
    assert not any(part.training for part in model.modules())
    model.train()
    model.model.layers[0].eval()  # a frozen part
    before = [part.training for part in model.modules()]
    assert perplexity(model, documents, window=9, stride=4, show_progress=False) == expected
    assert [part.training for part in model.modules()] == before
    model(input_ids=torch.tensor([documents[3]]), labels=torch.tensor([documents[3]])).loss.backward()


def test_modes_come_back_after_an_error(documents: list[tuple[int, ...]]) -> None:
    model = tiny_llama().train()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(CheckpointError):
        perplexity(model, documents, window=9, stride=4, show_progress=False)
    assert all(part.training for part in model.modules())
    assert torch.is_grad_enabled()


def test_a_peft_model_equals_its_merged_weights(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    config = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["embed_tokens"], init_lora_weights=False
    )
    adapted = get_peft_model(deepcopy(model), config).train()
    rows: list[int] = []
    adapted.get_base_model().lm_head.register_forward_hook(
        lambda _module, _inputs, output: rows.append(output.shape[1])
    )
    result = perplexity_by_length(adapted, documents, lengths=[7, 17], stride=3, show_progress=False)
    assert set(rows) == {4}
    assert adapted.training
    merged = perplexity_by_length(adapted.merge_and_unload(), documents, lengths=[7, 17], stride=3, show_progress=False)
    plain = perplexity_by_length(model, documents, lengths=[7, 17], stride=3, show_progress=False)
    for length in (7, 17):
        assert result[length].loss == pytest.approx(merged[length].loss, rel=TOLERANCE)
        assert abs(result[length].loss - plain[length].loss) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "convert",
    [
        lambda documents: [torch.tensor(document) for document in documents],
        lambda documents: [np.array(document, dtype=np.uint16) for document in documents],
        lambda documents: [list(document) for document in documents],
        lambda documents: Dataset.from_dict({"input_ids": documents})["input_ids"],
        lambda documents: Dataset.from_dict({"input_ids": documents}).with_format("torch")["input_ids"],
        iter,
    ],
)
def test_documents_of_any_kind(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]], convert: Callable[[list[tuple[int, ...]]], Any]
) -> None:
    expected = perplexity(model, documents, window=9, stride=4, show_progress=False)
    assert perplexity(model, convert(documents), window=9, stride=4, show_progress=False) == expected
