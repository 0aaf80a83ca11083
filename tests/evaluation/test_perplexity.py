"""Perplexity against a loop that feeds the model one context at a time and reads one probability."""

import math

import numpy as np
import pytest
import torch
from tests.evaluation.llama import (
    DOCUMENT_LENGTHS,
    TOLERANCE,
    VOCABULARY_SIZE,
    naive_nats,
    naive_sliding_loss,
    scored_tokens,
)
from transformers import LlamaForCausalLM

from longlora.evaluation.perplexity import perplexity
from longlora.evaluation.scoring import (
    evenly_spread,
    sliding_windows,
)


@pytest.mark.parametrize(
    ("window", "stride"),
    [(2, 1), (2, 2), (3, 2), (5, 1), (5, 3), (5, 5), (8, 7), (8, 8), (16, 4), (24, 24), (39, 3), (64, 8)],
)
def test_new_equals_the_token_loop(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]], window: int, stride: int
) -> None:
    expected = naive_sliding_loss(model, documents, window=window, stride=stride)
    for batch_size in (1, 3, 64):
        result = perplexity(model, documents, window=window, stride=stride, batch_size=batch_size, show_progress=False)
        assert result.num_tokens == sum(DOCUMENT_LENGTHS) - len(DOCUMENT_LENGTHS)
        assert result.loss == pytest.approx(expected, rel=TOLERANCE)
        assert result.perplexity == pytest.approx(math.exp(expected), rel=10 * TOLERANCE)


@pytest.mark.parametrize("arrangement", [[0, 4], [4, 0], [3], [5, 5, 1], [2, 3, 4, 5]])
def test_new_equals_the_token_loop_for_other_documents(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]], arrangement: list[int]
) -> None:
    chosen = [documents[index] for index in arrangement]
    expected = naive_sliding_loss(model, chosen, window=7, stride=4)
    loss = perplexity(model, chosen, window=7, stride=4, show_progress=False).loss
    assert loss == pytest.approx(expected, rel=TOLERANCE)


def test_a_context_that_starts_one_token_late_is_noticed(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]]
) -> None:
    result = perplexity(model, documents, window=16, stride=4, show_progress=False)
    wrong = naive_sliding_loss(model, documents, window=16, stride=4, late=1)
    assert abs(result.loss - wrong) > 100 * TOLERANCE * wrong


def test_batch_size_changes_nothing(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    one, *others = (
        perplexity(model, documents, window=9, stride=2, batch_size=batch_size, show_progress=False)
        for batch_size in (1, 2, 5, 100)
    )
    for other in others:
        assert (other.loss, other.standard_error) == pytest.approx((one.loss, one.standard_error), rel=1e-6)
        assert (other.num_tokens, other.num_windows) == (one.num_tokens, one.num_windows)


def test_across_documents_reads_one_stream(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    stream = tuple(token for document in documents for token in document)
    joined = perplexity(model, documents, window=9, stride=4, across_documents=True, show_progress=False)
    apart = perplexity(model, documents, window=9, stride=4, show_progress=False)
    assert joined == perplexity(model, [stream], window=9, stride=4, show_progress=False)
    assert joined.num_tokens == len(stream) - 1
    assert joined.loss == pytest.approx(naive_sliding_loss(model, [stream], window=9, stride=4), rel=TOLERANCE)
    assert abs(joined.loss - apart.loss) > 100 * TOLERANCE


def test_max_windows_takes_windows_from_everywhere(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    chosen = evenly_spread(sliding_windows(DOCUMENT_LENGTHS, window=6, stride=3), 5)
    expected = [naive_nats(model, documents[w.document], w.start, t) for w in chosen for _, t in scored_tokens([w])]
    result = perplexity(model, documents, window=6, stride=3, max_windows=5, batch_size=2, show_progress=False)
    assert (result.num_windows, result.num_tokens) == (5, len(expected))
    assert result.loss == pytest.approx(sum(expected) / len(expected), rel=TOLERANCE)
    assert {w.document for w in chosen} > {3, 4}


@pytest.mark.parametrize(
    "length", [40, 41, 43]
)  # (40 - 10) is a multiple of the stride: the original drops two windows
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_all_is_the_original_but_for_the_weight_of_a_short_batch(
    model: LlamaForCausalLM, length: int, batch_size: int
) -> None:
    window, stride = 10, 3
    stream = np.random.default_rng(1).integers(0, VOCABULARY_SIZE, size=length)
    starts = list(range(0, length - window, stride))[:-1]  # eval.py, get_as_batch
    rows = torch.tensor(np.stack([stream[start : start + window] for start in starts]))
    with torch.no_grad():
        batch_means = [model(input_ids=x, labels=x).loss.item() for x in rows.split(batch_size)]
        window_means = [model(input_ids=x, labels=x).loss.item() for x in rows.split(1)]
    original = 2.71828 ** np.mean(batch_means)

    fitting = perplexity(model, [stream], window=window, stride=stride, score="all", show_progress=False)
    assert fitting.num_windows == len(starts) + (2 if (length - window) % stride == 0 else 1)

    only_those = stream[: starts[-1] + window]
    result = perplexity(
        model, [only_those], window=window, stride=stride, score="all", batch_size=batch_size, show_progress=False
    )
    assert (result.num_windows, result.num_tokens) == (len(starts), len(starts) * (window - 1))
    assert result.loss == pytest.approx(np.mean(window_means), rel=TOLERANCE)
    if len(starts) % batch_size == 0:
        assert result.perplexity == pytest.approx(original, rel=10 * TOLERANCE)
    else:
        assert abs(result.perplexity - original) > 100 * TOLERANCE * original


def test_all_leaves_short_documents_out(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    every = perplexity(model, documents, window=20, stride=6, score="all", show_progress=False)
    long = perplexity(model, [documents[3], documents[4]], window=20, stride=6, score="all", show_progress=False)
    assert every == long
    assert (every.num_windows, every.num_tokens) == (1 + 4, 5 * 19)
