"""What a measurement hands back and prints, and the mistakes it refuses."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluation.llama import (
    VOCABULARY_SIZE,
    naive_nats,
    tiny_llama,
)
from transformers import LlamaForCausalLM

from longlora.errors import CheckpointError, ConfigError, DataError
from longlora.evaluation.perplexity import perplexity, perplexity_by_length
from longlora.evaluation.text_results import Perplexity


def test_standard_error_of_equal_windows_is_that_of_their_means(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]]
) -> None:
    result = perplexity_by_length(model, documents, lengths=[16], stride=3, show_progress=False)[16]
    means = [
        np.mean([naive_nats(model, document, end - 16, target) for target in range(end - 3, end)])
        for document in documents
        for end in range(16, len(document) + 1, 3)
    ]
    assert result.num_windows == len(means) == 13
    assert result.standard_error == pytest.approx(np.std(means, ddof=1) / math.sqrt(len(means)), rel=1e-4)


def test_standard_error_weighs_windows_by_their_tokens(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]]
) -> None:
    document = documents[4][:9]  # windows of 4, 2 and 2 targets
    nats = [
        naive_nats(model, document, start, target)
        for start, target in zip((0, 0, 0, 0, 2, 2, 4, 4), range(1, 9), strict=True)
    ]
    loss = sum(nats) / 8
    residuals = [sum(nats[:4]) - 4 * loss, sum(nats[4:6]) - 2 * loss, sum(nats[6:]) - 2 * loss]
    result = perplexity(model, [document], window=5, stride=2, show_progress=False)
    assert result.num_windows == 3
    assert result.standard_error == pytest.approx(math.sqrt(3 / 2 * sum(r**2 for r in residuals)) / 8, rel=1e-4)


def test_to_dict_is_json_even_where_a_number_is_not_finite() -> None:
    result = Perplexity(perplexity=math.inf, loss=800.0, num_tokens=3, num_windows=1, standard_error=math.nan)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == {
        "perplexity": None,
        "loss": 800.0,
        "num_tokens": 3,
        "num_windows": 1,
        "standard_error": None,
        "window_losses": [],
    }


def test_one_window_has_no_standard_error_and_a_huge_loss_no_perplexity(documents: list[tuple[int, ...]]) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight *= 1e4
    result = perplexity(model, [documents[4]], window=40, stride=8, show_progress=False)
    assert math.isfinite(result.loss) and result.loss > 709
    assert math.isinf(result.perplexity)
    assert math.isnan(result.standard_error)


def test_progress_is_on_stderr(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]], capfd: pytest.CaptureFixture[str]
) -> None:
    result = perplexity(model, documents, window=9, stride=4)
    captured = capfd.readouterr()
    assert f"{result.num_windows}/{result.num_windows} windows" in captured.err
    assert f"{result.perplexity:.2f}" in captured.err
    assert captured.out == ""
    perplexity_by_length(model, documents, lengths=[9], stride=4, description="base")
    assert "base 9 tokens" in capfd.readouterr().err


def test_no_progress_is_silent_even_beyond_the_trained_context(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]], capfd: pytest.CaptureFixture[str]
) -> None:
    assert model.config.max_position_embeddings < 40
    perplexity(model, documents, window=40, stride=4, show_progress=False)
    perplexity_by_length(model, documents, lengths=[9, 40], stride=4, show_progress=False)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 1, "stride": 1}, "window must be at least 2, not 1"),
        ({"window": 8, "stride": 0}, "stride must be at least 1, not 0"),
        ({"window": 8, "stride": 9}, r"stride must be at most window \(8\), not 9"),
        ({"window": 8, "stride": 4, "batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"window": 8, "stride": 4, "max_windows": 0}, "max_windows must be at least 1, not 0"),
        ({"window": 8, "stride": 4, "score": "last"}, "score must be 'new' or 'all', not 'last'"),
    ],
)
def test_arguments_out_of_range(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        perplexity(model, documents, show_progress=False, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [], "stride": 4}, "lengths must name at least one"),
        ({"lengths": [8, 16], "stride": 0}, "stride must be at least 1, not 0"),
        ({"lengths": [16, 8], "stride": 8}, r"stride must be smaller than the shortest length \(8\), not 8"),
        ({"lengths": [8, 16], "stride": 4, "batch_size_tokens": 0}, "batch_size_tokens must be at least 1, not 0"),
        ({"lengths": [8, 16], "stride": 4, "max_targets": 3}, r"max_targets must be at least stride \(4, .*, not 3"),
    ],
)
def test_arguments_by_length_out_of_range(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        perplexity_by_length(model, documents, show_progress=False, **arguments)


def test_no_document_is_long_enough(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    with pytest.raises(
        DataError, match=r"max\(lengths\) = 41 tokens, but the longest has 40: give longer documents or set"
    ):
        perplexity_by_length(model, documents, lengths=[8, 41], stride=4, show_progress=False)
    with pytest.raises(DataError, match="window = 41 tokens, but the longest has 40"):
        perplexity(model, documents, window=41, stride=4, score="all", show_progress=False)
    with pytest.raises(DataError, match="every document has a single token"):
        perplexity(model, [[3], [4]], window=8, stride=4, show_progress=False)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "there are no documents"),
        ([[1, 2, 3], []], "Document 1 has no tokens"),
        ([[1, 2, 3], [4, VOCABULARY_SIZE]], "Document 1 has token id 101 at position 1, but the model knows 0 to 100"),
        ([[1, -100, 3]], "Document 0 has token id -100 at position 1"),
        ([1, 2, 3], r"Document 0 must be a row of token ids, not a int .* \[ids\] for one document"),
        (["a text"], "Document 0 must be a row of token ids, not a str .* tokenize text first"),
        ([{"input_ids": [1, 2]}], r'Document 0 must be .* not a dict .* pass data_set\["input_ids"\]'),
        ([[0.5, 1.5]], "Document 0 must be a row of token ids, not a list .* float64"),
        ([torch.ones(2, 3, dtype=torch.long)], r"Document 0 must be .* not a Tensor of shape \(2, 3\)"),
    ],
)
def test_documents_that_are_not_token_ids(model: LlamaForCausalLM, documents: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        perplexity(model, documents, window=8, stride=4, show_progress=False)
    with pytest.raises(DataError, match=message):
        perplexity_by_length(model, documents, lengths=[8], stride=4, show_progress=False)


def test_nan_names_the_window() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[77] = math.nan
    documents = [[1] * 20, [1] * 18 + [77, 1]]  # only the last window of the second document reads token 77
    message = "The model produced NaN on tokens 12 to 19 of document 1: load it in bfloat16 or float32"
    for batch_size in (1, 8):
        with pytest.raises(CheckpointError, match=message):
            perplexity(model, documents, window=8, stride=4, batch_size=batch_size, show_progress=False)
