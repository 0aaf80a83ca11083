"""A model against its base: the same windows, the difference paired, the verdict no bolder than the error allows."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation.llama import naive_nats, tiny_llama
from transformers import LlamaForCausalLM

from longlora.errors import ConfigError, DataError
from longlora.evaluation.results import ShortContext
from longlora.evaluation.scoring import token_digest
from longlora.evaluation.short_context import Losses, compare_losses, window_losses
from longlora.evaluation.subject import Subject, base_of, named_context
from longlora.evaluation.texts import ModelAndTexts, Texts

Run = Callable[..., tuple[int, str, str]]


def compare(base: np.ndarray, losses: np.ndarray) -> ShortContext:
    both = Losses("base", "b", "the same", base), Losses("long", "l", "the same", losses)
    return compare_losses(*both, length=256, stride=16, settings={})


def losses_of(model: LlamaForCausalLM, documents: list[tuple[int, ...]], **options: Any) -> np.ndarray:
    subject = Subject(name="m", model=model, tokenizer=None)  # type: ignore[arg-type]
    material = ModelAndTexts(subject=subject, texts=Texts(["d"]), documents=[np.array(ids) for ids in documents])
    return window_losses(material, stride=4, **options).losses


def test_losses_equal_the_token_loop(model: LlamaForCausalLM, documents: list[tuple[int, ...]]) -> None:
    losses = losses_of(model, documents, length=11)
    windows = [(doc, end) for doc in documents for end in range(11, len(doc) + 1, 4)]
    expected = [np.mean([naive_nats(model, doc, end - 11, end - 4 + k) for k in range(4)]) for doc, end in windows]
    assert losses == pytest.approx(expected, rel=1e-5)
    late = [np.mean([naive_nats(model, doc, end - 10, end - 4 + k) for k in range(4)]) for doc, end in windows]
    assert losses != pytest.approx(late, rel=1e-3)  # one token of context less would be noticed
    assert len(losses_of(model, documents, length=11, max_targets=12)) == 3


def test_texts_that_are_too_short(model: LlamaForCausalLM) -> None:
    with pytest.raises(DataError, match=r"must have 60 tokens, the base's context; the longest has 5"):
        losses_of(model, [(1, 2, 3, 4, 5)], length=60)


def test_pairing_finds_what_the_spread_of_the_texts_hides(seed: int) -> None:
    generator = np.random.default_rng(seed)
    base = generator.normal(3, 1, 200)
    change = generator.normal(0.02, 0.03, 200)
    result = compare(base, base + change)
    assert result.difference == pytest.approx(change.mean())
    assert result.standard_error == pytest.approx(change.std(ddof=1) / math.sqrt(200))
    assert result.ratio == pytest.approx(result.perplexity / result.base_perplexity)
    unpaired = math.hypot(base.std(ddof=1), (base + change).std(ddof=1)) / math.sqrt(200)
    assert result.standard_error is not None and result.standard_error < unpaired / 10
    assert result.verdict.startswith("worse than its base: perplexity +")
    assert result.num_tokens == 3200


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ([-0.1, -0.11, -0.09], "better than its base on these texts: perplexity -9.5 %"),
        ([0.1, -0.1, 0.01], "no different from its base beyond the error"),
        ([0.1], "a single window has no error: give more text"),
    ],
)
def test_verdicts(change: list[float], verdict: str) -> None:
    base = np.linspace(2, 3, len(change))
    result = compare(base, base + np.array(change))
    assert verdict in result.verdict
    assert json.loads(json.dumps(result.to_dict()))["verdict"] == result.verdict


def test_the_command_knows_an_adapters_base(
    run: Run, base_model: Path, adapter: Path, text_folder: Path, tmp_path: Path
) -> None:
    assert base_of(str(adapter)) == str(base_model) and base_of(str(base_model)) is None
    assert named_context(str(adapter)) == named_context(str(base_model)) == 64
    arguments = ["--data", text_folder, "--max-targets", 320]
    status, out, err = run("eval", "short", adapter, *arguments, "--out", tmp_path / "out")
    assert status == 0, err
    written = json.loads((tmp_path / "out" / "short_context.json").read_text(encoding="utf-8"))
    assert written["base"] == str(base_model) and written["length"] == 64 and written["num_tokens"] == 320
    assert written["verdict"] in out and written["difference"] != 0
    status, out, err = run(
        "eval", "short", base_model, "--base", base_model, *arguments, "--json", "--out", tmp_path / "same"
    )
    assert (status, json.loads(out)["difference"], json.loads(out)["ratio"]) == (0, 0, 1)
    status, _, err = run("eval", "short", base_model, *arguments, "--out", tmp_path / "x")
    assert (status, "does not name its base: give the base with --base" in err) == (2, True)


@pytest.mark.parametrize("other", [[[1, 2]], [[1, 2, 4]], [[1, 2, 3], [4]]])
def test_other_tokens_are_not_compared(other: list[list[int]]) -> None:
    base = Losses("a", "x", token_digest([[1, 2, 3]]), np.ones(3))
    options: dict[str, Any] = {"length": 4, "stride": 2, "settings": {}}
    compare_losses(base, Losses("b", "y", token_digest([np.array([1, 2, 3])]), np.ones(3)), **options)
    with pytest.raises(ConfigError, match="b and a tokenize the same texts differently"):
        compare_losses(base, Losses("b", "y", token_digest(other), np.ones(3)), **options)


def test_models_are_left_as_they_were() -> None:
    model: Any = tiny_llama().train()
    losses_of(model, [tuple(range(20))], length=11)
    assert model.training
