"""LongPPL against a loop that does what its definition says, one target at a time."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.llama import tiny_llama
from transformers import LlamaForCausalLM

from longlora.evaluation import key_tokens
from longlora.evaluation.key_tokens import choose_key_tokens, find_key_tokens, ladder, long_perplexity
from longlora.evaluation.subject import Subject
from longlora.evaluation.texts import ModelAndTexts, Texts

CONTEXTS, LENGTH, LONGEST, STRIDE = [8, 16, 32], 40, 48, 4


def nats(model: LlamaForCausalLM, tokens: list[int]) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens[:-1]])).logits[0, -1]
    return -torch.log_softmax(logits.double(), dim=-1)[tokens[-1]].item()


def material_of(model: LlamaForCausalLM, name: str, document: list[int]) -> ModelAndTexts:
    subject = Subject(name=name, model=model, tokenizer=None)  # type: ignore[arg-type]
    return ModelAndTexts(subject=subject, texts=Texts(["d"]), documents=[np.array(document)])


def test_it_equals_a_naive_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(key_tokens, "_LEAST_GAIN", 0.01)  # a model without training gains little anywhere
    monkeypatch.setattr(key_tokens, "_MOST_LOSS", 20.0)
    evaluator, model = tiny_llama(), tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.8)
    generator = np.random.default_rng(1)
    document = generator.integers(0, evaluator.config.vocab_size, size=125).tolist()

    keys = find_key_tokens(
        material_of(evaluator, "e", document), contexts=CONTEXTS, longest=LONGEST, max_targets=10**6, folder=tmp_path
    )
    result = long_perplexity(material_of(model, "m", document), keys, length=LENGTH, settings={})

    ends = range(LONGEST, len(document) + 1, STRIDE)
    by_distance: dict[int, list[float]] = {}
    for window, end in enumerate(ends):
        for place in range(STRIDE):
            target = end - STRIDE + place
            short, *_, long = losses = [nats(evaluator, document[end - c : target + 1]) for c in CONTEXTS]
            expected = 0
            if short - long > 0.01 and long < 20.0:
                expected = CONTEXTS[2]
                if short - losses[1] >= (short - long) / 2:
                    expected = CONTEXTS[1]
                by_distance.setdefault(expected, []).append(nats(model, document[end - LENGTH : target + 1]))
            assert keys.evidence[window][place] == expected
    chosen = [loss for part in by_distance.values() for loss in part]
    assert 4 <= len(chosen) < len(ends) * STRIDE and len(by_distance) == 2
    assert result.key_tokens is not None
    assert result.key_tokens.perplexity == pytest.approx(math.exp(sum(chosen) / len(chosen)), rel=1e-5)
    assert result.key_tokens.num_tokens == len(chosen) and result.num_targets == len(ends) * STRIDE
    assert {part.end: part.loss for part in result.by_distance} == pytest.approx(
        {distance: sum(part) / len(part) for distance, part in by_distance.items()}, rel=1e-5
    )


def test_the_papers_bounds() -> None:
    short = np.array([[4.0, 4.0, 9.0, 1.9]])
    middle = np.array([[1.5, 3.9, 9.0, 1.9]])
    long = np.array([[1.0, 1.0, 2.1, 0.0]])
    # Half of the gain at 64; only at 256; 2.1 nats is no prediction; 1.9 nats is too small a gain.
    assert choose_key_tokens([short, middle, long], [32, 64, 256]).tolist() == [[64, 256, 0, 0]]
    assert choose_key_tokens([short, long, short, long], [32, 64, 128, 256]).tolist() == [[256, 256, 0, 0]]  # by luck


def test_contexts_are_doubled() -> None:
    assert ladder(4096) == [512, 1024, 2048, 4096]
    assert ladder(4096, 1000) == [1000, 1024, 2048, 4096]
    assert ladder(4096, 2048) == [2048, 4096]


def test_without_a_key_token_nothing_is_claimed(tmp_path: Path) -> None:
    material = material_of(tiny_llama(), "s", list(range(40)))
    with torch.no_grad():
        material.subject.model.lm_head.weight.zero_()
    keys = find_key_tokens(material, contexts=[8, 16], longest=16, max_targets=8, folder=tmp_path)
    result = long_perplexity(material, keys, length=16, settings={})
    assert not np.any(keys.evidence) and result.key_tokens is None
    assert result.verdict == "none of 8 tokens needs context beyond 8 tokens: give other texts"


def test_the_command_chooses_once(
    run: Callable[..., tuple[int, str, str]], base_model: Path, text_folder: Path, tmp_path: Path
) -> None:
    arguments = ["eval", "longppl", base_model, "--data", text_folder, "--across-documents", "--out", tmp_path]
    status, _, err = run(*arguments)
    assert status == 2 and "choose an evaluator with --evaluator" in err
    arguments += ["--evaluator", base_model, "--max-targets", "64"]
    status, out, err = run(*arguments)
    assert status == 0 and "none of 64 tokens needs context beyond 8 tokens" in out, err  # it was never trained
    chosen = (tmp_path / "key_tokens.json").read_bytes()
    assert json.loads(chosen)["contexts"] == [8, 16, 32, 64]
    assert run(*arguments)[0] == 0 and (tmp_path / "key_tokens.json").read_bytes() == chosen
    status, _, err = run(*arguments[:-1], "32")
    assert (status, "holds another measurement" in err) == (2, True)
