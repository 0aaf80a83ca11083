"""The command line: help at once, mistakes in one message with status 2, the main job end to end."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import longlora
from longlora.cli import main as cli
from longlora.support.progress import progress_bar

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; give its status and what it printed to stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["longlora", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capfd.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def recipe(base_model: Path, text_folder: Path, tmp_path: Path) -> Path:
    values: dict[str, Any] = {
        "model_name_or_path": str(base_model),
        "output_dir": str(tmp_path / "run"),
        "context_length": 128,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "gradient_accumulation_steps": 1,
        "save_steps": 2,
        "data": {"source": str(text_folder), "cache_dir": str(tmp_path / "cache")},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_messages_go_above_the_progress_bar_of_a_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def train_with_a_bar(**named: object) -> None:
        with progress_bar("training", total=2):
            logging.getLogger("longlora").info("all layers train in groups")

    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes a pipe for a terminal
    monkeypatch.setattr(cli, "app", train_with_a_bar)
    monkeypatch.setattr(sys, "argv", ["longlora"])
    cli.main()
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "all layers" in line]
    assert said.rsplit("\x1b[2K")[-1].strip() == "all layers train in groups"


def test_nothing_is_logged_to_a_stream_that_may_be_closed(run: Run) -> None:
    assert run("explain", "nothing-there.yaml")[0] == 2
    assert logging.getLogger("longlora").handlers == []


def test_libraries_are_quiet_about_what_no_user_can_mend_and_only_that(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("explain", "nothing-there.yaml")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    said = {
        "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community: no module",
        "transformers.trainer_utils": "mtime may not be reliable on this filesystem, falling back",
    }
    for name, message in said.items():
        logging.getLogger(name).warning(message)
        logging.getLogger(name).warning("another")
    assert {(record.name, record.getMessage()) for record in caplog.records} == {(name, "another") for name in said}


def test_merging_can_be_left_for_later(run: Run, recipe: Path, tmp_path: Path) -> None:
    status, out, err = run("train", recipe, "merge=false", "max_steps=1")
    assert status == 0, err
    assert f"longlora merge {tmp_path / 'run' / 'adapter'} {tmp_path / 'run' / 'merged'}" in out
    assert not (tmp_path / "run" / "merged").exists()


def test_a_result_that_is_made_anew_is_merged_anew(run: Run, recipe: Path, tmp_path: Path) -> None:
    assert run("train", recipe)[0] == 0
    merged = tmp_path / "run" / "merged" / "config.json"
    shutil.rmtree(tmp_path / "run" / "adapter")
    merged.write_text("{}")
    status, _, err = run("train", recipe)
    assert status == 0, err
    assert json.loads(merged.read_text())["max_position_embeddings"] == 128


def test_a_merge_that_failed_is_made_by_the_same_command(
    run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("longlora.merge.merge_adapter", _out_of_memory)
        status, out, err = run("train", recipe, "max_steps=1")
    assert status == 1
    assert f"written to {tmp_path / 'run' / 'adapter'}" in out and "merged into" not in out
    assert f"merging into {tmp_path / 'run' / 'merged'} failed (MemoryError: too large)" in err
    left_by_a_kill = tmp_path / "run" / ".merged.partial-1"
    left_by_a_kill.mkdir()
    status, out, err = run("train", recipe, "max_steps=1")
    assert status == 0, err
    assert "is already trained; creating what is missing: merged" in err
    assert f"merged into {tmp_path / 'run' / 'merged'}" in out
    assert (tmp_path / "run" / "merged" / "model.safetensors").exists() and not left_by_a_kill.exists()
    status, _, err = run("train", recipe, "max_steps=1")
    assert status == 2 and "holds a finished run" in err


def _out_of_memory(*_: object) -> None:
    raise MemoryError("too large")


def test_train_evaluate_merge_evaluate(run: Run, recipe: Path, tmp_path: Path, text_folder: Path) -> None:
    status, out, err = run("train", recipe, "attention.dense_finish=0.5")
    assert status == 0, err
    adapter = tmp_path / "run" / "adapter"
    assert f"merged into {tmp_path / 'run' / 'merged'}" in out
    assert json.loads((tmp_path / "run" / "merged" / "config.json").read_text())["max_position_embeddings"] == 128
    assert "S² with groups of 32 tokens, full attention in the last 2 of 4 steps" in err
    assert "embeddings" in err

    perplexities = []
    status, out, err = run("merge", adapter, tmp_path / "merged")
    assert status == 0, err
    for model in (adapter, tmp_path / "merged"):
        arguments = ("--data", text_folder, "--lengths", "64,128", "--stride", 32, "--dtype", "float32", "--json")
        status, out, err = run("eval", "perplexity", model, *arguments)
        assert status == 0, err
        perplexities.append({k: v["perplexity"] for k, v in json.loads(out)["perplexity"].items()})
    assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-4)
    assert set(perplexities[0]) == {"64", "128"}


def test_perplexity_as_a_table_at_default_lengths(run: Run, base_model: Path, text_folder: Path) -> None:
    status, out, err = run("eval", "perplexity", base_model, "--data", text_folder)
    assert status == 0, err
    assert [int(line.split()[0]) for line in out.splitlines()] == [8, 16, 32, 64]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("learning_rat=1", "did you mean 'learning_rate'?"),
        ("model_name_or_path=./nowhere", "there is no model directory ./nowhere"),
        ("context_length=32", "context_length=32 must exceed the 64 tokens"),
        ("context_length=1000000", "1000000"),
        ("data.source=./no/texts", "./no/texts"),
    ],
)
def test_a_mistake_ends_in_one_message(run: Run, recipe: Path, override: str, expected: str) -> None:
    status, _, err = run("train", recipe, override)
    assert status == 2
    assert expected in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("longlora:")]) == 1


def test_a_folder_without_text(run: Run, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, _, err = run("train", recipe, f"data.source={tmp_path / 'empty'}")
    assert (status, "Traceback" in err) == (2, False)
    assert str(tmp_path / "empty") in err


def test_a_model_that_is_cut_short(run: Run, recipe: Path, base_model: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(base_model, tmp_path / "broken"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    status, _, err = run("train", recipe, f"model_name_or_path={broken}")
    assert (status, "Traceback" in err) == (2, False)
    assert f"cannot load the weights of '{broken}'" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train", "nowhere.yaml"), "cannot read the recipe"),
        (("merge", "nowhere", "out"), "holds no adapter"),
        (("merge", "a", "b", "--dtype", "int3"), "int3"),
        (("eval", "perplexity", "tiny", "--data", "x", "--lengths", "a"), "--lengths must be whole numbers"),
        (("eval", "perplexity", "./nowhere", "--data", "x"), "there is no model directory"),
    ],
)
def test_a_wrong_argument(run: Run, arguments: tuple[str, ...], expected: str) -> None:
    status, _, err = run(*arguments)
    assert (status, expected in err, "Traceback" in err) == (2, True, False), err


def test_help_imports_little_and_nothing_heavy() -> None:
    program = """
import sys
sys.argv = ["longlora", "--help"]
from longlora.cli.main import main
try:
    main()
finally:
    assert not {"torch", "transformers", "peft", "datasets"} & set(sys.modules)
    print(len(sys.modules), file=sys.stderr)
"""
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(run.stderr) < 500  # 0.3 s of a core; torch alone brings more than a thousand


def test_every_command_has_help(run: Run) -> None:
    commands = [[], ["demo"], ["train"], ["merge"], ["eval"], ["corpus", "mix"]]
    for command in commands:
        for option in ("--help", "-h"):
            status, out, _ = run(*command, option)
            assert status == 0
            assert "Usage" in out


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run("--version") == (0, f"longlora {longlora.__version__}\n", "")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", longlora.__version__)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "RECIPE", "learning_rat=1"], "did you mean 'learning_rate'?"),
        (["train", "RECIPE", "data.source=./no/texts"], "source './no/texts' does not exist"),
        (["train", "RECIPE", "data.validation_source=./no/texts.txt"], "source './no/texts.txt' does not exist"),
        (["train", "RECIPE", "model_name_or_path=./nowhere"], "there is no model directory ./nowhere"),
        (["train", "RECIPE", "output_dir=TEXTS"], "exists and is not a longlora run"),
        (["merge", "nowhere", "out"], "holds no adapter"),
        (["eval", "needle", "./nowhere", "--out", "x"], "there is no model directory ./nowhere"),
        (["eval", "./nowhere", "--suite", "quick", "--out", "x"], "there is no model directory ./nowhere"),
        (["eval", "perplexity", "tiny", "--data", "./no.txt"], "source './no.txt' does not exist"),
        (["chat", "./nowhere"], "there is no model directory ./nowhere"),
        (["serve", "./nowhere"], "there is no model directory ./nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_told_before_anything_heavy_is_loaded(
    arguments: list[str], expected: str, recipe: Path, text_folder: Path
) -> None:
    names = {"RECIPE": str(recipe)}
    words = ["longlora", *(names.get(word, word).replace("TEXTS", str(text_folder)) for word in arguments)]
    program = f"""
import sys
sys.argv = {words!r}
from longlora.cli.main import main
try:
    main()
finally:
    print(sorted({{"torch", "transformers", "datasets"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "[]\n"), done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow  # three runs in processes of their own
def test_a_run_that_is_killed_resumes_with_the_same_losses(recipe: Path, tmp_path: Path) -> None:
    """SIGKILL, so that nothing can be tidied up, as soon as the first checkpoint is whole."""
    command = [sys.executable, "-m", "longlora.cli", "train", str(recipe), "max_steps=12", "save_steps=3"]
    subprocess.run([*command, f"output_dir={tmp_path / 'alone'}"], check=True, capture_output=True)

    victim = [*command, f"output_dir={tmp_path / 'killed'}"]
    process = subprocess.Popen(victim, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").glob("checkpoints/*/digests.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "adapter").exists(), "killed too late to show anything"
    subprocess.run(victim, check=True, capture_output=True)
    curves = [_losses(tmp_path / name) for name in ("alone", "killed")]
    assert len(curves[0]) == 12
    assert curves[1] == pytest.approx(curves[0], abs=1e-6)


def test_ctrl_c_ends_with_130(recipe: Path, tmp_path: Path) -> None:
    # A shell starts background jobs with SIGINT ignored, and children inherit that: put Python's own handler back.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from longlora.cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "train", str(recipe), "max_steps=1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; the same command resumes" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("command", "is_resumed"), [("train", True), ("serve", False), ("web", False)])
def test_what_can_be_resumed_after_a_signal_is_said_of_what_can(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, is_resumed: bool
) -> None:
    def end() -> None:
        raise SystemExit(143)

    monkeypatch.setattr(cli, "app", end)
    status, _, said = run(command)
    assert (status, "the same command resumes" in said) == (143, is_resumed)


def _losses(run_directory: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_directory / "metrics.jsonl").read_text().splitlines()]


def test_idle_warnings_of_libraries_are_not_shown(run: Run) -> None:
    idle = {
        "`gradient_checkpointing` is deprecated and will be removed": FutureWarning,
        "`is_gradient_checkpointing` is deprecated and will be removed": FutureWarning,
        "You are calling .generate() with inputs on cpu, but your model is on meta": UserWarning,
    }
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert run("recipes")[0] == 0
        for text, category in [*idle.items(), ("another", FutureWarning)]:
            warnings.warn(text, category, stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["another"]
    matched = [sum(re.match(pattern, text) is not None for text in idle) for pattern in cli._IDLE_WARNINGS]
    assert matched == [1] * len(idle)
