"""Results and runs are found, read, and put to the model that they belong to; what is damaged is named."""

import json
import logging
from pathlib import Path

import pytest
from tests.report.folders import LENGTHS, write_curves, write_retrieval, write_run

from longlora.errors import ConfigError, DataError
from longlora.report.collect import collect

MODEL = "runs/mine/adapter"


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    for test in ("needle", "recall"):
        write_retrieval(folder / test, MODEL, dict(zip(LENGTHS, (1, 1, 0.5, 0), strict=True)), test=test)
    write_curves(folder, MODEL, level=9, rises_after=4096)
    return folder


def test_everything_of_a_model_is_found(evaluation: Path) -> None:
    (model,) = collect([str(evaluation)]).models
    assert (model.name, model.label, model.context) == (MODEL, "mine/adapter", 8192)
    assert {title: test.reading.reached for title, test in model.retrieval.items()} == {
        "needle": 2048,
        "recall of 8": 2048,
    }
    assert model.retrieval["needle"].lengths[2].shares["generated"].share == 0.5
    assert model.retrieval["needle"].lengths[2].by_depth["0.75"]["generated"].num_trials == 10
    assert model.perplexity is not None and list(model.perplexity.perplexity) == list(LENGTHS)
    assert model.positions is not None and len(model.positions.curve) == 32


def test_forms_of_a_test_are_told_apart(tmp_path: Path) -> None:
    for name, settings in (("one", {}), ("three", {"num_needles": 3})):
        write_retrieval(tmp_path / name, MODEL, {512: 1}, **settings)
    write_retrieval(tmp_path / "original", MODEL, {512: 1}, test="passkey", form="original")
    (model,) = collect([str(tmp_path)]).models
    assert list(model.retrieval) == ["needle", "passkey, original form", "needle, 3 facts"]


def test_a_run_belongs_to_the_model_inside_it_or_to_the_name_it_is_given(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        write_run(tmp_path / name)
        (tmp_path / name / "adapter").mkdir()
    inside = str(tmp_path / "one" / "adapter")
    write_retrieval(tmp_path / "eval-one", inside, {512: 1})
    write_retrieval(tmp_path / "eval-two", "merged", {512: 1})
    found = collect([*(str(tmp_path / f"eval-{n}") for n in ("one", "two")), str(tmp_path / "one"),
                     f"merged={tmp_path / 'two'}", str(tmp_path / "three")])  # fmt: skip
    runs = {model.name: model.run.path.name for model in found.models if model.run}
    assert runs == {inside: "one", "merged": "two"}
    assert [run.path.name for run in found.runs] == ["three"]
    assert len(found.all_runs) == 3


def test_a_run_beside_its_adapter_needs_no_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path / "runs" / "mine")
    write_retrieval(tmp_path / "eval", str(tmp_path / "runs" / "mine" / "adapter"), {512: 1})
    (model,) = collect([str(tmp_path / "eval")]).models
    assert model.run is not None and model.run.path == tmp_path / "runs" / "mine"
    (tmp_path / "runs" / "mine" / "recipe.yaml").write_text("a: [")
    (model,) = collect([str(tmp_path / "eval")]).models
    assert model.run is None and "holds no readable training run" in caplog.text


def test_tokens_and_hours_of_a_run_that_was_resumed(tmp_path: Path) -> None:
    write_run(tmp_path / "run", num_steps=50)
    (run,) = collect([str(tmp_path)]).runs
    assert run.num_tokens == 50 * 8192  # though the count began anew at step 30
    assert run.hours == pytest.approx(10.4)
    assert run.steps == list(range(1, 51))
    assert run.device == "NVIDIA H100"


def test_a_copied_run_whose_log_is_older_than_its_start_has_no_hours(tmp_path: Path) -> None:
    import os

    write_run(tmp_path / "run", num_steps=3)
    os.utime(tmp_path / "run" / "metrics.jsonl", (0, 0))
    assert collect([str(tmp_path)]).runs[0].hours is None
    (tmp_path / "run" / "environment.json").unlink()
    (run,) = collect([str(tmp_path)]).runs
    assert (run.hours, run.device) == (None, "")


def test_labels_leave_out_what_all_names_share(tmp_path: Path) -> None:
    for number, name in enumerate(("runs/a/adapter", "runs/b/adapter", "tiny")):
        write_retrieval(tmp_path / str(number), name, {512: 1})
    assert [m.label for m in collect([str(tmp_path / "0"), str(tmp_path / "1")]).models] == ["a/adapter", "b/adapter"]
    assert [m.label for m in collect([str(tmp_path)]).models] == ["runs/a/adapter", "runs/b/adapter", "tiny"]


def test_two_results_of_a_kind_are_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, share in (("a", 0.1), ("b", 1.0)):
        write_retrieval(tmp_path / name, MODEL, {512: share})
    with caplog.at_level(logging.WARNING, logger="longlora"):
        (model,) = collect([str(tmp_path)]).models
    assert "more than one result of a kind" in caplog.text and str(tmp_path / "b") in caplog.text
    assert model.retrieval["needle"].reading.reached == 512


def test_other_weights_under_the_same_name_are_refused_unless_named(tmp_path: Path) -> None:
    write_retrieval(tmp_path / "a", MODEL, {512: 1}, weights="old")
    write_retrieval(tmp_path / "b", MODEL, {512: 1}, test="passkey", weights="new")
    with pytest.raises(DataError, match="other weights than"):
        collect([str(tmp_path)])
    models = collect([str(tmp_path / "a"), f"trained on={tmp_path / 'b'}"]).models
    assert [model.name for model in models] == [MODEL, "trained on"]


def test_a_path_without_results(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds neither results of `longlora eval` \(result\.json"):
        collect([str(tmp_path)])
    with pytest.raises(ConfigError, match="does not exist"):
        collect([str(tmp_path / "nowhere")])


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"settings": {"model": "m"}, "provenance": {}}'])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(DataError, match=r"result\.json is no result of `longlora eval`"):
        collect([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", '{"loss"\n'),
        ("metrics.jsonl", '{"loss": 1.0, "step": 1e999}\n'),
        ("recipe.yaml", "a: ["),
    ],
)
def test_a_damaged_run_is_named(tmp_path: Path, name: str, text: str) -> None:
    write_run(tmp_path / "run", num_steps=3)
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(DataError, match="holds no readable training run"):
        collect([str(tmp_path)])


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "run", num_steps=3)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')
    assert collect([str(tmp_path)]).runs[0].steps == [1, 2, 3]


def test_a_result_file_can_be_named_itself(evaluation: Path) -> None:
    (model,) = collect([str(evaluation / "needle" / "result.json")]).models
    assert list(model.retrieval) == ["needle"]
    assert json.loads((evaluation / "needle" / "result.json").read_text())["test"] == "needle"
