"""The whole verdict in one command: on models whose ability is known, after an interruption, and by the bare form."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.conftest import byte_tokenizer
from tests.evaluation.scripted import EVERYTHING, ScriptedConfig, ScriptedModel

from longlora.errors import ConfigError
from longlora.evaluation import drawing
from longlora.evaluation import suite as suite_module
from longlora.evaluation.results import SuiteRecord, finished
from longlora.evaluation.retrieval import Sweep
from longlora.evaluation.retrieval_tests import passkey
from longlora.evaluation.subject import Loading, Subject, folder_name, load_subject
from longlora.evaluation.suite import Suite, lengths_without_room, run_suite, shared_lengths
from longlora.evaluation.texts import Texts
from longlora.report.collect import collect
from longlora.report.verdict import lead

Run = Callable[..., tuple[int, str, str]]
SMALL = Suite(
    parts_of_context=(4, 1),
    depths=(0.0, 1.0),
    trials=1,
    trials_without_depth=2,
    max_targets=64,
    max_windows=1,
    short_targets=64,
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few questions, and no pictures: they have tests of their own, and take longer than all the rest."""
    monkeypatch.setitem(suite_module.SUITES, "quick", SMALL)
    monkeypatch.setattr(drawing, "draw", lambda *_: None)


def scripted(visible: int) -> ScriptedModel:
    return ScriptedModel(ScriptedConfig(visible=visible, max_position_embeddings=1600), byte_tokenizer()).eval()


@pytest.mark.parametrize(
    ("visible", "bar", "said"),  # 2 of 2 right certify 30 %, 0 of 2 rule 90 % out
    [
        (
            EVERYTHING,
            0.3,
            "reads to 1,600 of its 1,600 tokens, the longest tested, in all 7 tests: reliably at least 30%",
        ),
        (900, 0.3, "reads to 800 of its 1,600 tokens in the hardest of 7 tests"),
        (0, 0.9, "cannot do any of the 7 tests reliably even at 800 tokens, the shortest tested, which does not say"),
    ],
)
def test_the_report_says_how_far_a_model_of_known_ability_reads(
    small: None, monkeypatch: pytest.MonkeyPatch, text_folder: Path, tmp_path: Path, visible: int, bar: float, said: str
) -> None:
    model = scripted(visible)
    monkeypatch.setattr(
        suite_module, "load_subject", lambda name, *_: Subject(name=name, model=model, tokenizer=model.tokenizer)
    )
    monkeypatch.setattr(suite_module, "Sweep", partial(Sweep, bar=bar))
    monkeypatch.setattr(suite_module, "named_context", lambda _: 1600)
    monkeypatch.setattr(suite_module, "base_of", lambda _: None)
    monkeypatch.setattr(suite_module, "measure_curves", lambda *_, **__: None)  # reads row by row in Python: minutes
    run_suite(["known"], suite="quick", output=tmp_path, lengths=[800, 1600], texts=Texts([str(text_folder)]))
    (found,) = collect([str(tmp_path)]).models
    assert said in lead(found)
    assert len(found.retrieval) == 7


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_bare_command_measures_reports_and_goes_on(
    small: None, run: Run, base_model: Path, adapter: Path, text_folder: Path, tmp_path: Path
) -> None:
    arguments = ["eval", adapter, base_model, "--suite", "quick", "--out", tmp_path, "--data", text_folder]
    arguments += ["--beyond", "--lengths", "32,700"]
    status, out, err = run(*arguments)
    assert status == 0, err
    assert "cannot do any of the 7 tests reliably even at 700 tokens" in out
    assert f"written to {tmp_path / 'report.html'}" in out
    mine, base = (tmp_path / folder_name(str(name)) for name in (adapter, base_model))
    for test in ("passkey", "needle", "topics", "recall"):
        lengths = [row["length"] for row in json.loads((mine / test / "result.json").read_text())["lengths"]]
        assert lengths == [700]
        assert f"left out: {test} at 32 tokens" in err
    perplexity = {
        folder: json.loads((folder / "perplexity" / "perplexity.json").read_text()) for folder in (mine, base)
    }
    assert list(perplexity[mine]["perplexity"]) == ["32", "128", "700"]  # twice the context of 64, too
    assert perplexity[mine]["settings"] == perplexity[base]["settings"]  # the same targets, so that they compare
    assert json.loads((mine / "positions" / "positions.json").read_text())["length"] == 700
    short = json.loads((mine / "short" / "short_context.json").read_text())
    assert (short["base"], short["length"]) == (str(base_model), 64)
    assert not (base / "short").exists()
    for folder in (mine, base):  # the base chose the tokens for both
        chosen = json.loads((folder / "longppl" / "longppl.json").read_text())
        assert (chosen["evaluator"], chosen["length"], chosen["short"]) == (str(base_model), 700, 8)
    assert json.loads((tmp_path / "key_tokens.json").read_text())["longest"] == 700
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Left out" in page and "passkey at 32 tokens" in page and "Short context" in page

    before = files_of(tmp_path)
    (base / "recall" / "result.json").unlink()
    (base / "positions" / "positions.json").unlink()
    partial = perplexity[base] | {"perplexity": {"32": perplexity[base]["perplexity"]["32"]}}
    (base / "perplexity" / "perplexity.json").write_text(json.dumps(partial))
    log = (mine / "recall" / "trials.jsonl").read_text().splitlines(keepends=True)
    (mine / "recall" / "trials.jsonl").write_text("".join(log[:-1]))
    assert run(*arguments)[0] == 0
    after = files_of(tmp_path)
    assert before.keys() == after.keys()
    again = json.loads(after[f"{base.name}/perplexity/perplexity.json"])
    assert again["perplexity"] == perplexity[base]["perplexity"]
    kept = [f"{mine.name}/{name}" for name in ("short/short_context.json", "positions/positions.json")]
    assert [before[name] for name in kept] == [after[name] for name in kept]  # their dates too: not measured again

    status, _, err = run(*arguments[:-1], "32,800")
    assert (status, "holds another measurement" in err) == (2, True)


def test_the_bare_form_needs_the_word_suite(run: Run) -> None:
    status, _, err = run("eval", "pasky", "tiny")
    assert (status, "No such command 'pasky'" in err) == (2, True)


def test_lengths_are_shared_and_within_the_longest_context() -> None:
    assert shared_lengths([256, 1024], SMALL, None, beyond=False) == [256, 1024]
    assert shared_lengths([256, 1024], SMALL, [100], beyond=True) == [100, 2048]
    with pytest.raises(ConfigError, match="lengths must be 1 to 1,024 tokens"):
        shared_lengths([256, 1024], SMALL, [2000], beyond=False)


def test_each_suite_asks_less_than_the_next() -> None:
    def questions(suite: Suite) -> list[int]:
        return [
            len(suite.parts_of_context),
            len(suite.depths) * suite.trials,
            suite.trials_without_depth,
            *(suite.max_targets, suite.max_windows, suite.short_targets),
        ]

    smoke, quick, full = (questions(suite_module.SUITES[name]) for name in ("smoke", "quick", "full"))
    assert all(one < other < most for one, other, most in zip(smoke, quick, full, strict=True))


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--suite must be one of smoke, quick, full, not huge"):
        run_suite(["tiny"], suite="huge", output=tmp_path)
    with pytest.raises(ConfigError, match="each model needs its own folder"):
        run_suite(["x/runs/a/adapter", "y/runs/a/adapter"], suite="quick", output=tmp_path)
    assert folder_name("/somewhere/runs/a b/adapter") == "runs-a-b-adapter"


def test_too_short_for_a_question(byte_level: Any) -> None:
    too_short = lengths_without_room(passkey(), byte_level, [700, 64, 400])
    assert list(too_short) == [64] and "without any filler" in too_short[64]


def test_results_of_other_weights_are_not_taken_for_these(tmp_path: Path) -> None:
    assert finished(SuiteRecord, tmp_path, {"a": 1}, "w") is None
    SuiteRecord(model="m", weights="w", settings={"a": [1]}, left_out=[]).write(tmp_path)
    assert finished(SuiteRecord, tmp_path, {"a": (1,)}, "w")
    for settings, weights in (({"a": [2]}, "w"), ({"a": [1]}, "v")):
        with pytest.raises(ConfigError, match="holds another measurement"):
            finished(SuiteRecord, tmp_path, settings, weights)


def test_several_processes_cannot_each_spread_over_all_devices() -> None:
    from longlora.distributed import Processes

    with pytest.raises(ConfigError, match="start a single process"):
        load_subject("tiny", Loading(device_map="auto"), Processes(index=0, count=2, device=None, wait=lambda: None))


def test_a_suite_without_enough_text(small: None, base_model: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("the sea")  # 7 bytes, and the end of the text
    (record,) = run_suite(
        [str(base_model)], suite="quick", output=tmp_path / "o", texts=Texts([str(tmp_path / "one.txt")])
    )
    notes = "\n".join(record.left_out)
    assert "beyond 8 tokens, which is all the text there is" in notes
    assert "the model's base is unknown" in notes
    assert not (tmp_path / "o" / folder_name(str(base_model)) / "positions").exists()
