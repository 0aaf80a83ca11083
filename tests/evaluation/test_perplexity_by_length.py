"""The same targets at every length, against the same loop."""

from typing import Any

import pytest
from tests.evaluation.llama import (
    TOLERANCE,
    naive_nats,
)
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from longlora.evaluation.perplexity import perplexity_by_length


def test_by_length_equals_the_token_loop(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    stride, longest = 4, 17
    results = perplexity_by_length(
        model, documents, lengths=[longest, 5, 8], stride=stride, batch_size_tokens=16, show_progress=False
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
        model,
        documents,
        lengths=[4, 7, 20],
        stride=3,
        batch_size_tokens=14,
        max_targets=max_targets,
        show_progress=False,
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
        perplexity_by_length(model, documents, lengths=[6, 12], stride=2, batch_size_tokens=size, show_progress=False)
        for size in (1, 4096)
    )
    for length in (6, 12):
        one, other = small[length].to_dict(), large[length].to_dict()
        assert one.pop("window_losses") == pytest.approx(other.pop("window_losses"), rel=1e-6)
        assert one == pytest.approx(other, rel=1e-6)
