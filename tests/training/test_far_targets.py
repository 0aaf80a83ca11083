"""Targets with a long effective context weigh more, in packed rows, in either form of the loss."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tests.training.conftest import MakeRecipe

from longlora.config import parse_recipe
from longlora.errors import ConfigError
from longlora.training.far_targets import bucket_weights, count_targets
from longlora.training.recipe_rows import with_long_repeated
from longlora.training.run import train
from longlora.training.trainer import ExtensionTrainer


def test_targets_are_counted_by_what_stands_before_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = [generator.integers(1, 70, size=generator.integers(1, 9)).tolist() for _ in range(7)]
    expected = [0] * 32
    for length in (length for row in rows for length in row):
        for context in range(1, length):
            expected[context.bit_length() - 1] += 1
    assert count_targets(Dataset.from_dict({"seq_lengths": rows})).tolist() == expected


def test_each_far_bucket_has_the_same_extra_weight_in_sum() -> None:
    counts = np.array([100, 100, 80, 40, 10, 0])
    weights = bucket_weights(counts, extra=3.0, beyond=4)
    assert weights @ counts / counts.sum() == pytest.approx(1)
    plain, extra = weights[0], weights - weights[0]
    assert plain == weights[1] == weights[5]
    assert (extra * counts)[2:5] == pytest.approx(130 * plain * np.ones(3))  # 3 times their 130 targets, in three parts
    assert bucket_weights(counts, extra=3.0, beyond=64).tolist() == [1.0] * 6
    rare = bucket_weights(np.array([0, 0, 10**6, 1]), extra=1.0, beyond=4)
    assert rare[3] / rare[2] == pytest.approx((1 + 8) / (1 + 0.5), rel=1e-3)  # and not half a million


@pytest.mark.parametrize("chunked_loss", [True, False])
def test_the_loss_of_a_step_is_the_weighted_mean(
    chunked_loss: bool, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        kept = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        result = original(self, model, inputs, return_outputs, num_items_in_batch)
        with torch.no_grad():
            logits = model(**kept, use_cache=False).logits[0]
        expected = 0.0
        for place, label in enumerate(kept["labels"][0, 1:].tolist()):
            if label != -100:
                context = kept["position_ids"][0, place].item() + 1
                weight = self.target_weights[int(context).bit_length() - 1].item()
                expected += weight * F.cross_entropy(logits[place], torch.tensor(label)).item()
        plain = ExtensionTrainer._plain_loss(self, model, kept, False, num_items_in_batch).item()
        seen.append((result.item(), expected / num_items_in_batch.item(), plain))
        return result

    original = ExtensionTrainer.compute_loss
    monkeypatch.setattr(ExtensionTrainer, "compute_loss", spy)
    recipe = make_recipe(
        far_target_weight=4, far_target_beyond=16, chunked_loss=chunked_loss, max_steps=1, attention={"pattern": "full"}
    )
    train(recipe)
    assert len(seen) == 2  # micro-steps
    for weighted, expected, plain in seen:
        assert weighted == pytest.approx(expected, rel=1e-4)
        assert weighted != pytest.approx(plain, rel=1e-4)


def test_held_out_loss_is_not_weighted(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    losses = []
    for weight in (0.0, 8.0):
        data = {
            "source": str(tmp_path / "texts"),
            "validation_source": str(tmp_path / "texts"),
            "cache_dir": str(tmp_path),
        }
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / "a.txt").write_text("the sea was calm and a ship lay still upon it. " * 60)
        recipe = make_recipe(far_target_weight=weight, max_steps=1, data=data, output_dir=str(tmp_path / str(weight)))
        train(recipe)
        lines = (tmp_path / str(weight) / "metrics.jsonl").read_text().splitlines()
        losses.append(next(line["eval_loss"] for line in map(json.loads, lines) if "eval_loss" in line))
    assert losses[0] == losses[1]


def test_a_run_says_what_is_far(make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="longlora"):
        train(make_recipe(far_target_weight=1, far_target_beyond=100, max_steps=1))
    assert "far_target_weight has no effect" in caplog.text  # 128 is the first bucket from 100 on


def test_a_run_tells_its_weights(make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="longlora"):
        train(make_recipe(far_target_weight=1, max_steps=1))
    assert re.search(
        r"far targets: [\d.]+ % have 32 tokens of their document before them; weights 0\.\d\d", caplog.text
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"far_target_beyond": 64}, "far_target_beyond=64 needs far_target_weight above 0"),
        ({"data": {"source": "x", "long_document_tokens": 5}}, "needs data.long_document_repeats above 1"),
        ({"data": {"source": "x", "kind": "sft", "long_document_repeats": 2}}, "belongs to data.kind=text"),
    ],
)
def test_keys_that_do_not_go_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        needed = {"model_name_or_path": "m", "output_dir": "o", "context_length": 8, "data": {"source": "x"}}
        parse_recipe(needed | values)


def test_long_documents_come_again_and_short_ones_stay(caplog: pytest.LogCaptureFixture) -> None:
    documents = Dataset.from_dict({"input_ids": [[1] * 3, [2] * 9, [3] * 2, [4] * 8]})
    repeated = with_long_repeated(documents, tokens=8, times=3)
    assert [ids[0] for ids in repeated["input_ids"]] == [1, 2, 3, 4, 2, 4, 2, 4]
    assert len(with_long_repeated(documents, tokens=10, times=3)) == 4
    assert "has no effect: no document has 10 tokens" in caplog.text
