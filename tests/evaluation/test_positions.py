"""Loss by position against the token loop, and against models that stop reading at a known place."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluation.llama import TOLERANCE, VOCABULARY_SIZE, naive_nats, tiny_llama
from tests.evaluation.scripted import CERTAIN, EVERYTHING, ScriptedConfig, ScriptedModel
from torch import Tensor
from transformers import LlamaForCausalLM

from longlora.errors import CheckpointError, ConfigError, DataError
from longlora.evaluation.drawing import result_table, write_result
from longlora.evaluation.perplexity import loss_by_position
from longlora.evaluation.text_results import LossByPosition, PositionLoss, reading_stops_at

HEADER = 8


def test_the_curve_equals_the_token_loop(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    length, edges = 13, [1, 4, 7, 10, 13]
    starts = [(document, start) for document in documents for start in range(0, len(document) - length + 1, length)]
    nats = np.array(
        [[naive_nats(model, doc, start, start + place) for place in range(1, length)] for doc, start in starts]
    )
    for batch_size_tokens in (1, 40):
        curve = loss_by_position(
            model, documents, length=length, num_buckets=4, batch_size_tokens=batch_size_tokens, show_progress=False
        )
        assert [(bucket.start, bucket.end) for bucket in curve] == list(itertools.pairwise(edges))
        for bucket in curve:
            means = nats[:, bucket.start - 1 : bucket.end - 1].mean(axis=1)
            assert bucket.loss == pytest.approx(means.mean(), rel=TOLERANCE)
            assert bucket.standard_error == pytest.approx(means.std(ddof=1) / math.sqrt(len(starts)), rel=1e-3)
            assert bucket.num_tokens == 3 * len(starts)
            late = nats[:, bucket.start : bucket.end].mean()
            assert abs(late - bucket.loss) > 10 * TOLERANCE  # a bucket that is one token late would be noticed


def test_buckets_of_unequal_size_cover_every_position_once(model: LlamaForCausalLM) -> None:
    document = list(range(50))
    for num_buckets in (1, 2, 5, 9):
        curve = loss_by_position(model, [document], length=10, num_buckets=num_buckets, show_progress=False)
        assert [bucket.start for bucket in curve[1:]] == [bucket.end for bucket in curve[:-1]]
        assert (curve[0].start, curve[-1].end) == (1, 10)
        assert sum(bucket.num_tokens for bucket in curve) == 5 * 9


class KnowsTheHeader(ScriptedModel):
    """Tells that the token at position p is the header's p-th, modulo its length, as long as it sees the header."""

    def row(self, seen: Tensor) -> Tensor:
        logits = torch.zeros(self.config.vocab_size)
        if HEADER <= len(seen) <= self.config.visible:
            logits[seen[len(seen) % HEADER]] = CERTAIN
        return logits


def header_model(visible: int) -> KnowsTheHeader:
    config = ScriptedConfig(vocab_size=VOCABULARY_SIZE, visible=visible)
    return KnowsTheHeader(config, None).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("visible", [96, 160, 200])
def test_the_curve_turns_up_where_reading_stops(visible: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    documents = [np.tile(generator.integers(0, VOCABULARY_SIZE, HEADER), 32) for _ in range(3)]
    settings: dict[str, Any] = {"length": 256, "num_buckets": 17, "batch_size_tokens": 256, "show_progress": False}
    everything = loss_by_position(header_model(EVERYTHING), documents, **settings)
    assert all(bucket.loss < 1e-6 for bucket in everything[1:])
    assert reading_stops_at(everything) is None
    curve = loss_by_position(header_model(visible), documents, **settings)
    for bucket in curve[1:]:
        if bucket.end <= visible + 1:
            assert bucket.loss < 1e-6
        if bucket.start > visible:
            assert bucket.loss == pytest.approx(math.log(VOCABULARY_SIZE), rel=1e-6)
    stop = reading_stops_at(curve)
    assert stop is not None and stop <= visible + 1 < stop + 16


def bucket(start: int, loss: float, error: float = 0.1) -> PositionLoss:
    return PositionLoss(start=start, end=start + 10, loss=loss, standard_error=error, num_tokens=10)


@pytest.mark.parametrize(
    ("losses", "stop"),
    [
        ([5, 4, 3, 2], None),
        ([5, 2, 2.1, 2.2], None),
        ([5, 2, 3, 4], 21),
        ([5, 2, 4, 2.1, 4], 41),
        ([5, 2, 4, 2.1], None),
        ([2, 4], 11),
        ([2], None),
    ],
)
def test_where_reading_stops_by_hand(losses: list[float], stop: int | None) -> None:
    curve = [bucket(1 + 10 * index, loss) for index, loss in enumerate(losses)]
    assert reading_stops_at(curve) == stop


def test_two_standard_errors_of_a_difference() -> None:
    limit = 2 * math.sqrt(0.1**2 + 0.3**2)
    assert reading_stops_at([bucket(1, 2.0), bucket(11, 2.0 + limit + 1e-6, 0.3)]) == 11
    assert reading_stops_at([bucket(1, 2.0), bucket(11, 2.0 + limit - 1e-6, 0.3)]) is None
    assert reading_stops_at([bucket(1, 2.0, math.nan), bucket(11, 9.0, math.nan)]) is None


def test_windows_are_spread_over_the_texts(model: LlamaForCausalLM) -> None:
    documents = [[token] * 40 for token in range(10)]
    some = loss_by_position(model, documents, length=8, num_buckets=1, max_windows=5, show_progress=False)
    assert some[0].num_tokens == 5 * 7
    chosen = [documents[index][:8] for index in (1, 3, 5, 7, 9)]
    assert loss_by_position(model, chosen, length=8, num_buckets=1, show_progress=False)[0].loss == pytest.approx(
        some[0].loss
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": 1}, ConfigError, "length must be at least 2, not 1"),
        ({"num_buckets": 0}, ConfigError, r"num_buckets must be 1 to length - 1 \(7\), not 0"),
        ({"num_buckets": 8}, ConfigError, r"num_buckets must be 1 to length - 1 \(7\), not 8"),
        ({"max_windows": 0}, ConfigError, "max_windows must be at least 1, not 0"),
        ({"length": 41}, DataError, "must have length = 41 tokens, but the longest has 40"),
    ],
)
def test_mistakes(
    model: LlamaForCausalLM,
    documents: list[tuple[int, ...]],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        loss_by_position(model, documents, show_progress=False, **{"length": 8, "num_buckets": 2} | arguments)


def test_nan(documents: list[tuple[int, ...]]) -> None:
    broken = tiny_llama()
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = math.nan
    with pytest.raises(CheckpointError, match="produced NaN on tokens"):
        loss_by_position(broken, documents, length=8, num_buckets=2, show_progress=False)


def test_the_report(tmp_path: Path) -> None:
    curve = [bucket(1, 5.0), bucket(11, 2.0), bucket(21, 4.0, math.nan), bucket(31, 4.5)]
    result = LossByPosition(model="m", length=41, context=20, num_windows=3, curve=curve, provenance={"date": "d"})
    assert result.verdict == (
        "the loss is lowest, 2.000, after 11 to 20 tokens, and from 31 tokens on stays above that by more than two "
        "standard errors"
    )
    write_result(result, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "positions.json").read_text(encoding="utf-8"))
    assert written["reading_stops_at"] == 31 and written["curve"][2]["standard_error"] is None
    assert written["provenance"] == {"date": "d"}
    assert (tmp_path / "out" / "positions.png").read_bytes().startswith(b"\x89PNG")
    assert list(result_table(result).columns[0].cells) == ["1 to 10", "11 to 20", "21 to 30", "31 to 40"]
