"""The script that reads endlessly runs to its end, and what it writes is what it read."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import DynamicCache

from longlora.models.load import compute_dtype, load_for_inference

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("streaming")


def test_it_reads_draws_and_tells_where_it_comes_from(
    streaming: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["streaming.py", "tiny", "--tokens", "700", "--piece", "32", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    assert streaming.main() == 0
    (report,) = tmp_path.glob("streaming-*.json")
    assert report.with_suffix(".png").stat().st_size > 10_000
    content = json.loads(report.read_text())
    assert content["origin"]["command"].endswith("--piece 32 --output " + str(tmp_path))
    streamed, without_sinks, everything = content["results"][0]["curves"]
    assert streamed["tokens"][-1] == without_sinks["tokens"][-1] == everything["tokens"][-1] == 699
    token_bytes = 6 * 2 * 2 * 40 * compute_dtype("auto").itemsize  # layers × keys and values × heads × dimensions
    assert streamed["cache_bytes"][-1] == 256 * token_bytes
    assert everything["cache_bytes"][-1] == 699 * token_bytes


def test_perplexity_is_that_of_one_pass_over_the_text(streaming: ModuleType) -> None:
    model, tokenizer = load_for_inference("tiny", dtype="float32")
    tokens = streaming.text_tokens(tokenizer, 101)
    curve = streaming.Curve(cache="all tokens", window=None, num_sinks=0)
    streaming.read(model, tokens, DynamicCache(), curve, piece=7, stretch=50)
    with torch.no_grad():
        row = tokens[None].to(model.device)
        expected = model(input_ids=row, labels=row).loss.item()
    shares = [after - before for before, after in zip([0, *curve.tokens], curve.tokens, strict=False)]
    found = sum(math.log(value) * share for value, share in zip(curve.perplexity, shares, strict=True)) / 100
    assert found == pytest.approx(expected, rel=1e-5)
