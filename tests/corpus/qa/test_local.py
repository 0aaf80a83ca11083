"""A model in this process: random weights write no JSON, and that is handled like any other reply."""

import asyncio
import json
from pathlib import Path

import pytest
import torch
from tests.corpus.qa.conftest import Make
from tests.corpus.qa.test_journal import Attempts, a_call

from longlora.corpus.qa.answering_model import LocalModel, choose_model
from longlora.corpus.qa.calls import UnansweredError
from longlora.corpus.qa.make import journal_path
from longlora.errors import ConfigError

CHOICE = {
    "model": "",
    "base_url": None,
    "tokenizer": None,
    "chars_per_token": 3.0,
    "timeout_seconds": 1.0,
}


def test_it_is_asked_through_its_chat_template(base_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = LocalModel(str(base_model))
    assert "no chat template" in caplog.text
    assert model.positions == 64
    answer = model.generate(a_call(prompt="Why?", max_tokens=5))
    # <s> is not put before the text by this tokenizer: [INST]Why?[/INST] in bytes.
    assert answer.prompt_tokens == len("[INST]Why?[/INST]")
    assert answer.completion_tokens == 5
    assert answer.finish == "length"
    again = model.generate(a_call(prompt="Why?", max_tokens=5))
    assert again == answer


def test_the_seed_decides_what_is_sampled(base_model: Path) -> None:
    model = LocalModel(str(base_model))

    def text(seed: int) -> str:
        return model.generate(a_call(temperature=2.0, seed=seed, max_tokens=20)).text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_the_models_own_penalty_does_not_change_what_it_quotes(base_model: Path) -> None:
    model = LocalModel(str(base_model))
    call = a_call(prompt="Why?", max_tokens=20)
    plain = model.generate(call)
    model._model.generation_config.repetition_penalty = 5.0
    assert model.generate(call) == plain


def test_a_prompt_that_does_not_fit_the_memory(base_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalModel(str(base_model))

    def overflow(**_: object) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(model._model, "generate", overflow)
    with pytest.raises(UnansweredError, match="a prompt of 17 tokens does not fit"):
        model.generate(a_call(prompt="Why?"))


def test_a_model_that_does_not_say_how_far_it_reads(base_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalModel, "positions", None)
    with pytest.raises(ConfigError, match="does not say how many tokens it reads; give --window"):
        choose_model(**CHOICE, local=str(base_model), window=None)


def test_closing_ends_a_generation(base_model: Path) -> None:
    async def story() -> int:
        model = LocalModel(str(base_model))
        attempts = Attempts()
        await model.close()
        await model.answer(a_call(max_tokens=500), attempts)
        (attempt,) = attempts.made
        assert attempt.answer is not None
        return attempt.answer.completion_tokens or 0

    assert asyncio.run(story()) == 1


def test_a_set_from_a_local_model(
    make: Make, base_model: Path, texts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = choose_model(**CHOICE, local=str(base_model), window=None)
    assert (chosen.name, chosen.window) == (base_model.name, 64)
    assert "--window" not in caplog.text
    chosen = choose_model(**CHOICE, local=str(base_model), window=4000)
    assert "--window 4000 is more than the 64 tokens" in caplog.text
    summary = make(
        source=texts / "a-short.txt",
        answerer=chosen.answerer,
        model=chosen.name,
        window=chosen.window,
        reply_tokens=8,
        notes_tokens=4,
        tries=1,
    )
    assert summary.is_complete
    assert summary.dropped == {"unreadable reply": 5}
    lines = [json.loads(line) for line in journal_path(tmp_path / "qa.json").read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if "reply" in line]
    assert [line["model"] for line in found] == [base_model.name] * 5
    assert summary.spent.completion_tokens == sum(line["completion_tokens"] for line in found) <= 5 * 8
