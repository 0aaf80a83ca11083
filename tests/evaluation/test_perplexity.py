"""Perplexity against a loop that feeds the model one context at a time and reads one probability."""

import json
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from longlora.errors import CheckpointError, ConfigError, DataError
from longlora.evaluation import perplexity as module
from longlora.evaluation.perplexity import (
    Perplexity,
    Window,
    batches,
    evenly_spread,
    full_windows,
    perplexity,
    perplexity_by_length,
    sliding_windows,
    windows_at_length,
)

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


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="module")
def documents() -> list[tuple[int, ...]]:
    generator = np.random.default_rng(0)
    return [tuple(generator.integers(0, VOCABULARY_SIZE, size=length).tolist()) for length in DOCUMENT_LENGTHS]


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


# Windows, with literal numbers


def test_sliding_windows_by_hand() -> None:
    assert sliding_windows([10], window=4, stride=3) == [(0, 0, 4, 3), (0, 3, 7, 3), (0, 6, 10, 3)]
    assert sliding_windows([9], window=4, stride=3) == [(0, 0, 4, 3), (0, 3, 7, 3), (0, 5, 9, 2)]
    assert sliding_windows([6], window=4, stride=1) == [(0, 0, 4, 3), (0, 1, 5, 1), (0, 2, 6, 1)]
    assert sliding_windows([0, 1, 2, 3, 4], window=4, stride=2) == [(2, 0, 2, 1), (3, 0, 3, 2), (4, 0, 4, 3)]


def test_stride_of_a_whole_window_shares_one_token() -> None:
    assert sliding_windows([10], window=4, stride=4) == sliding_windows([10], window=4, stride=3)
    assert sliding_windows([4], window=2, stride=2) == [(0, 0, 2, 1), (0, 1, 3, 1), (0, 2, 4, 1)]


def test_sliding_windows_score_every_token_but_the_first_once() -> None:
    for length in range(14):
        for window in range(2, 8):
            for stride in range(1, window + 1):
                windows = sliding_windows([length, 3], window=window, stride=stride)
                expected = [(0, token) for token in range(1, length)] + [(1, 1), (1, 2)]
                assert scored_tokens(windows) == expected, (length, window, stride)
                assert all(w.num_targets < w.end - w.start <= window for w in windows)
                assert all(w.end - w.start == window for w in windows if w.document == 0 and length >= window)


def test_full_windows_by_hand() -> None:
    assert full_windows([10, 3, 4], window=4, stride=3) == [(0, 0, 4, 3), (0, 3, 7, 3), (0, 6, 10, 3), (2, 0, 4, 3)]
    assert full_windows([9], window=4, stride=3) == [(0, 0, 4, 3), (0, 3, 7, 3)]
    assert full_windows([9], window=2, stride=5) == [(0, 0, 2, 1), (0, 5, 7, 1)]


def test_windows_at_length_by_hand() -> None:
    assert windows_at_length([7, 11], length=3, longest=8, stride=2) == [(1, 5, 8, 2), (1, 7, 10, 2)]
    assert windows_at_length([7, 11], length=8, longest=8, stride=2) == [(1, 0, 8, 2), (1, 2, 10, 2)]


def test_evenly_spread_by_hand() -> None:
    windows = [Window(0, start, start + 2, 1) for start in range(10)]
    assert [w.start for w in evenly_spread(windows, 1)] == [5]
    assert [w.start for w in evenly_spread(windows, 3)] == [1, 5, 8]
    assert evenly_spread(windows, 10) == windows
    assert evenly_spread(windows, 99) == windows
    assert len({w.start for w in evenly_spread(windows, 7)}) == 7


def test_batches_have_one_shape_and_the_largest_comes_first() -> None:
    first, short, a, b, c = (
        Window(0, 0, 4, 3),
        Window(1, 0, 2, 1),
        Window(0, 3, 7, 2),
        Window(0, 5, 9, 2),
        Window(2, 1, 5, 2),
    )
    assert list(batches([short, a, b, first, c], 2)) == [[first], [a, b], [c], [short]]


# score="new"


@pytest.mark.parametrize(
    ("window", "stride"),
    [(2, 1), (2, 2), (3, 2), (5, 1), (5, 3), (5, 5), (8, 7), (8, 8), (16, 4), (24, 24), (39, 3), (64, 8)],
)
def test_new_equals_the_token_loop(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]], window: int, stride: int
) -> None:
    expected = naive_sliding_loss(model, documents, window=window, stride=stride)
    for batch_size in (1, 3, 64):
        result = perplexity(model, documents, window=window, stride=stride, batch_size=batch_size, progress=False)
        assert result.num_tokens == sum(DOCUMENT_LENGTHS) - len(DOCUMENT_LENGTHS)
        assert result.loss == pytest.approx(expected, rel=TOLERANCE)
        assert result.perplexity == pytest.approx(math.exp(expected), rel=10 * TOLERANCE)


@pytest.mark.parametrize("arrangement", [[0, 4], [4, 0], [3], [5, 5, 1], [2, 3, 4, 5]])
def test_new_equals_the_token_loop_for_other_documents(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]], arrangement: list[int]
) -> None:
    chosen = [documents[index] for index in arrangement]
    expected = naive_sliding_loss(model, chosen, window=7, stride=4)
    assert perplexity(model, chosen, window=7, stride=4, progress=False).loss == pytest.approx(expected, rel=TOLERANCE)


def test_a_context_that_starts_one_token_late_is_noticed(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]]
) -> None:
    result = perplexity(model, documents, window=16, stride=4, progress=False)
    wrong = naive_sliding_loss(model, documents, window=16, stride=4, late=1)
    assert abs(result.loss - wrong) > 100 * TOLERANCE * wrong


def test_batch_size_changes_nothing(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    one, *others = (
        perplexity(model, documents, window=9, stride=2, batch_size=batch_size, progress=False).to_dict()
        for batch_size in (1, 2, 5, 100)
    )
    for other in others:
        assert other == pytest.approx(one, rel=1e-6)


def test_across_documents_reads_one_stream(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    stream = tuple(token for document in documents for token in document)
    joined = perplexity(model, documents, window=9, stride=4, across_documents=True, progress=False)
    apart = perplexity(model, documents, window=9, stride=4, progress=False)
    assert joined == perplexity(model, [stream], window=9, stride=4, progress=False)
    assert joined.num_tokens == len(stream) - 1
    assert joined.loss == pytest.approx(naive_sliding_loss(model, [stream], window=9, stride=4), rel=TOLERANCE)
    assert abs(joined.loss - apart.loss) > 100 * TOLERANCE


def test_max_windows_takes_windows_from_everywhere(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    chosen = evenly_spread(sliding_windows(DOCUMENT_LENGTHS, window=6, stride=3), 5)
    expected = [naive_nats(model, documents[w.document], w.start, t) for w in chosen for _, t in scored_tokens([w])]
    result = perplexity(model, documents, window=6, stride=3, max_windows=5, batch_size=2, progress=False)
    assert (result.num_windows, result.num_tokens) == (5, len(expected))
    assert result.loss == pytest.approx(sum(expected) / len(expected), rel=TOLERANCE)
    assert {w.document for w in chosen} > {3, 4}


# score="all"


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

    fitting = perplexity(model, [stream], window=window, stride=stride, score="all", progress=False)
    assert fitting.num_windows == len(starts) + (2 if (length - window) % stride == 0 else 1)

    only_those = stream[: starts[-1] + window]
    result = perplexity(
        model, [only_those], window=window, stride=stride, score="all", batch_size=batch_size, progress=False
    )
    assert (result.num_windows, result.num_tokens) == (len(starts), len(starts) * (window - 1))
    assert result.loss == pytest.approx(np.mean(window_means), rel=TOLERANCE)
    if len(starts) % batch_size == 0:
        assert result.perplexity == pytest.approx(original, rel=10 * TOLERANCE)
    else:
        assert abs(result.perplexity - original) > 100 * TOLERANCE * original


def test_all_leaves_short_documents_out(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    every = perplexity(model, documents, window=20, stride=6, score="all", progress=False)
    long = perplexity(model, [documents[3], documents[4]], window=20, stride=6, score="all", progress=False)
    assert every == long
    assert (every.num_windows, every.num_tokens) == (1 + 4, 5 * 19)


# By length


def test_by_length_equals_the_token_loop(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    stride, longest = 4, 17
    results = perplexity_by_length(
        model, documents, lengths=[longest, 5, 8], stride=stride, batch_size_tokens=16, progress=False
    )
    assert list(results) == [5, 8, 17]
    for length, result in results.items():
        nats = [
            naive_nats(model, document, end - length, target)
            for document in documents
            for end in range(longest, len(document) + 1, stride)
            for target in range(end - stride, end)
        ]
        assert (result.num_tokens, result.num_windows) == (len(nats), len(nats) // stride)
        assert result.loss == pytest.approx(sum(nats) / len(nats), rel=TOLERANCE)
    assert abs(results[5].loss - results[17].loss) > 100 * TOLERANCE  # the context counts


@pytest.mark.parametrize("max_targets", [None, 20])
def test_by_length_scores_the_same_tokens_at_every_length(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, max_targets: int | None
) -> None:
    documents = [list(range(0, 50)), list(range(50, 100))]  # a token id is its place
    seen: dict[int, list[int]] = {}
    forward = model.forward

    def watch(*, input_ids: Tensor, **options: Any) -> CausalLMOutputWithPast:
        for row in input_ids.tolist():
            assert row == list(range(row[0], row[0] + len(row)))
            seen.setdefault(len(row), []).extend(row[-3:])
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "forward", watch)
    results = perplexity_by_length(
        model, documents, lengths=[4, 7, 20], stride=3, batch_size_tokens=14, max_targets=max_targets, progress=False
    )
    assert seen[4] == seen[7] == seen[20]
    assert len(set(seen[4])) == len(seen[4]) == results[4].num_tokens == results[20].num_tokens
    if max_targets is None:
        # Windows end at 20, 23, …, 50 of each document.
        assert seen[4] == [*range(17, 50), *range(67, 100)]
    else:
        assert len(seen[4]) == 18  # whole windows below the limit
        assert min(seen[4]) < 30 and max(seen[4]) > 80


def test_by_length_result_is_independent_of_the_batch(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]]
) -> None:
    small, large = (
        perplexity_by_length(model, documents, lengths=[6, 12], stride=2, batch_size_tokens=size, progress=False)
        for size in (1, 4096)
    )
    for length in (6, 12):
        assert small[length].to_dict() == pytest.approx(large[length].to_dict(), rel=1e-6)


# The model


def test_only_the_logits_needed_are_computed(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    rows: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda _module, _inputs, output: rows.append(output.shape[1]))
    perplexity_by_length(model, documents, lengths=[16], stride=3, progress=False)
    hook.remove()
    assert set(rows) == {4}


def test_a_model_without_logits_to_keep(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    plain = perplexity(tiny_llama(PlainLlama), documents, window=9, stride=4, progress=False)
    assert plain.to_dict() == pytest.approx(
        perplexity(model, documents, window=9, stride=4, progress=False).to_dict(), rel=1e-6
    )


def test_chunks_of_logits_change_nothing(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = perplexity(model, documents, window=9, stride=4, batch_size=3, progress=False)
    monkeypatch.setattr(module, "LOGIT_ROWS_PER_CHUNK", 3)
    chunked = perplexity(model, documents, window=9, stride=4, batch_size=3, progress=False)
    assert chunked.to_dict() == pytest.approx(whole.to_dict(), rel=1e-7)


def test_probabilities_are_float32_in_a_bfloat16_model(documents: list[tuple[int, ...]]) -> None:
    model = tiny_llama().to(torch.bfloat16)
    document = documents[4]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([document])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(document[1:])).item()
    rounded = torch.nn.functional.cross_entropy(logits, torch.tensor(document[1:])).item()
    result = perplexity(model, [document], window=40, stride=40, progress=False)
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert abs(rounded - expected) > 1e-5 * expected


def test_dropout_is_off_and_every_module_gets_its_mode_back(documents: list[tuple[int, ...]]) -> None:
    model = tiny_llama(attention_dropout=0.5)
    expected = perplexity(model, documents, window=9, stride=4, progress=False)
    assert not any(part.training for part in model.modules())
    model.train()
    model.model.layers[0].eval()  # a frozen part
    before = [part.training for part in model.modules()]
    assert perplexity(model, documents, window=9, stride=4, progress=False) == expected
    assert [part.training for part in model.modules()] == before
    model(input_ids=torch.tensor([documents[3]]), labels=torch.tensor([documents[3]])).loss.backward()


def test_modes_come_back_after_an_error(documents: list[tuple[int, ...]]) -> None:
    model = tiny_llama().train()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(CheckpointError):
        perplexity(model, documents, window=9, stride=4, progress=False)
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
    result = perplexity_by_length(adapted, documents, lengths=[7, 17], stride=3, progress=False)
    assert set(rows) == {4}
    assert adapted.training
    merged = perplexity_by_length(adapted.merge_and_unload(), documents, lengths=[7, 17], stride=3, progress=False)
    plain = perplexity_by_length(model, documents, lengths=[7, 17], stride=3, progress=False)
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
    expected = perplexity(model, documents, window=9, stride=4, progress=False)
    assert perplexity(model, convert(documents), window=9, stride=4, progress=False) == expected


# The result


def test_standard_error_of_equal_windows_is_that_of_their_means(
    model: LlamaForCausalLM, documents: list[tuple[int, ...]]
) -> None:
    result = perplexity_by_length(model, documents, lengths=[16], stride=3, progress=False)[16]
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
    result = perplexity(model, [document], window=5, stride=2, progress=False)
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
    }


def test_one_window_has_no_standard_error_and_a_huge_loss_no_perplexity(documents: list[tuple[int, ...]]) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight *= 1e4
    result = perplexity(model, [documents[4]], window=40, stride=8, progress=False)
    assert math.isfinite(result.loss) and result.loss > 709
    assert math.isinf(result.perplexity)
    assert math.isnan(result.standard_error)


# Progress


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
    perplexity(model, documents, window=40, stride=4, progress=False)
    perplexity_by_length(model, documents, lengths=[9, 40], stride=4, progress=False)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


# Mistakes


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
        perplexity(model, documents, progress=False, **arguments)


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
        perplexity_by_length(model, documents, progress=False, **arguments)


def test_no_document_is_long_enough(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    with pytest.raises(
        DataError, match=r"max\(lengths\) = 41 tokens, the longest has 40: give longer documents or set"
    ):
        perplexity_by_length(model, documents, lengths=[8, 41], stride=4, progress=False)
    with pytest.raises(DataError, match="window = 41 tokens, the longest has 40"):
        perplexity(model, documents, window=41, stride=4, score="all", progress=False)
    with pytest.raises(DataError, match="every document has a single token"):
        perplexity(model, [[3], [4]], window=8, stride=4, progress=False)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "there are no documents"),
        ([[1, 2, 3], []], "Document 1 has no tokens"),
        ([[1, 2, 3], [4, VOCABULARY_SIZE]], "Document 1 has token id 101 at position 1, the model knows 0 to 100"),
        ([[1, -100, 3]], "Document 0 has token id -100 at position 1"),
        ([1, 2, 3], r"Document 0 must be a row of token ids, not a int .* \[ids\] for one document"),
        (["a text"], "Document 0 must be a row of token ids, not a str .* tokenise text first"),
        ([{"input_ids": [1, 2]}], r'Document 0 must be .* not a dict .* pass data_set\["input_ids"\]'),
        ([[0.5, 1.5]], "Document 0 must be a row of token ids, not a list .* float64"),
        ([torch.ones(2, 3, dtype=torch.long)], r"Document 0 must be .* not a Tensor of shape \(2, 3\)"),
    ],
)
def test_documents_that_are_not_token_ids(model: LlamaForCausalLM, documents: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        perplexity(model, documents, window=8, stride=4, progress=False)
    with pytest.raises(DataError, match=message):
        perplexity_by_length(model, documents, lengths=[8], stride=4, progress=False)


def test_nan_names_the_window() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[77] = math.nan
    documents = [[1] * 20, [1] * 18 + [77, 1]]  # only the last window of the second document reads token 77
    message = "The model produced NaN on tokens 12 to 19 of document 1: load it in bfloat16 or float32"
    for batch_size in (1, 8):
        with pytest.raises(CheckpointError, match=message):
            perplexity(model, documents, window=8, stride=4, batch_size=batch_size, progress=False)
