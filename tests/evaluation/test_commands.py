"""`longlora eval …` end to end on a model of 64 positions, in one process and in two."""

import inspect
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from longlora.cli.eval import evaluate
from longlora.errors import ConfigError
from longlora.evaluation import subject
from longlora.evaluation.retrieval import LOG_FILE

Run = Callable[..., tuple[int, str, str]]

COMMANDS = {
    "passkey": ["--lengths", "400,500", "--depths", "0,1"],
    "needle": ["--lengths", "400", "--depths", "0.5", "--needles", "2"],
    "topics": ["--lengths", "700"],
    "recall": ["--lengths", "400", "--pairs", "2"],
    "association": ["--lengths", "400", "--depths", "0.5", "--people", "2"],
    "tracking": ["--lengths", "400", "--hops", "1", "--chains", "2"],
    "counting": ["--lengths", "700"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_retrieval_test_as_a_table_and_as_json(run: Run, base_model: Path, tmp_path: Path, command: str) -> None:
    arguments = ["eval", command, base_model, *COMMANDS[command], "--trials", 2, "--beyond", "--out", tmp_path]
    status, out, err = run(*arguments)
    assert status == 0, err
    assert "cannot do the task at" in out and "the shortest tested: 0% of" in out
    assert f"written to {tmp_path}" in out
    assert {path.name for path in tmp_path.iterdir()} == {LOG_FILE, "result.json", f"{command}.png"}
    written = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert written["provenance"]["command"] == "longlora " + " ".join(map(str, arguments))
    log = (tmp_path / LOG_FILE).read_bytes()
    status, out, err = run(*arguments, "--json")
    assert status == 0, err
    assert json.loads(out)["lengths"] == written["lengths"]
    assert (tmp_path / LOG_FILE).read_bytes() == log  # nothing was asked again


def test_a_haystack_of_the_users_own(run: Run, base_model: Path, text_folder: Path, tmp_path: Path) -> None:
    arguments = ["--lengths", 400, "--trials", 1, "--beyond", "--out", tmp_path, "--haystack", text_folder]
    for command in ("needle", "recall"):
        status, _, err = run("eval", command, base_model, *arguments[:-3], tmp_path / command, *arguments[-2:])
        assert status == 0, err
        settings = json.loads((tmp_path / command / "result.json").read_text(encoding="utf-8"))["settings"]
        assert settings["haystack"] != "generated sentences"


def test_every_command_that_loads_a_model_takes_its_dtype() -> None:
    takes = {
        command.callback.__name__: inspect.signature(command.callback).parameters.keys()
        for command in evaluate.registered_commands
        if command.callback is not None
    }
    assert {name for name, options in takes.items() if "dtype" in options} == takes.keys() - {"tokens"}


@pytest.mark.parametrize("command", ["positions", "passkey", "short"])
def test_the_dtype_reaches_the_model(
    run: Run, base_model: Path, text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    loaded: list[str] = []

    def load(*_: object, dtype: str, **__: object) -> None:
        loaded.append(dtype)
        raise ConfigError("far enough")

    monkeypatch.setattr(subject, "load_for_inference", load)
    more = {"short": ["--base", base_model]}.get(command, [])
    data = [] if command == "passkey" else ["--data", text_folder]
    status, _, err = run("eval", command, base_model, *data, *more, "--out", tmp_path, "--dtype", "bfloat16")
    assert (status, loaded) == (2, ["bfloat16"]), err


def test_positions(run: Run, base_model: Path, text_folder: Path, tmp_path: Path) -> None:
    arguments = ["eval", "positions", base_model, "--data", text_folder, "--out", tmp_path / "out"]
    status, out, err = run(*arguments, "--buckets", 4, "--max-windows", 6)
    assert status == 0, err
    assert "the loss is lowest" in out
    result = json.loads((tmp_path / "out" / "positions.json").read_text(encoding="utf-8"))
    assert (result["length"], result["num_windows"], len(result["curve"])) == (64, 6, 4)
    status, _, err = run(*arguments, "--length", 65)
    assert (status, "the model has 64 positions" in err) == (2, True)


def test_a_token_file_gives_the_same_perplexity_as_its_texts(
    run: Run, base_model: Path, text_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "texts.bin"
    one = text_folder / "one.txt"
    status, out, err = run("eval", "tokens", base_model, "--data", one, "--out", path)
    assert status == 0, err
    assert f"{path.stat().st_size // 2:,} tokens written to {path}" in out
    options = ["--lengths", "50,64", "--stride", 40, "--json"]
    for protocol, across in (
        ("same-targets", ["--across-documents"]),
        ("new", ["--across-documents"]),
        ("all", ["--across-documents"]),
        ("original", []),
    ):
        results = []
        for data in ([one, *across], [path]):
            status, out, err = run("eval", "perplexity", base_model, "--data", *data, *options, "--protocol", protocol)
            assert status == 0, err
            results.append(json.loads(out))
        assert results[0] == results[1]
        assert results[0]["protocol"] == protocol


def test_protocols_differ_and_count_what_they_say(run: Run, base_model: Path, text_folder: Path) -> None:
    counted = {}
    for protocol in ("same-targets", "new", "all", "original"):
        options = ["--lengths", 64, "--stride", 32, "--protocol", protocol, "--json", "--max-documents", 1]
        status, out, err = run("eval", "perplexity", base_model, "--data", text_folder, *options)
        assert status == 0, err
        counted[protocol] = json.loads(out)["perplexity"]["64"]
    num_tokens = counted["new"]["num_tokens"] + 1
    assert counted["same-targets"]["num_tokens"] == (num_tokens - 64) // 32 * 32 + 32
    assert counted["all"]["num_windows"] == (num_tokens - 64) // 32 + 1
    assert counted["original"]["num_windows"] == len(range(0, num_tokens - 64, 32)) - 1
    assert len({result["loss"] for result in counted.values()}) == 4


def test_at_most_so_many_targets(run: Run, base_model: Path, text_folder: Path) -> None:
    for protocol, expected in (("same-targets", 96), ("new", 32 * 3), ("all", 63)):
        options = ["--lengths", 64, "--stride", 32, "--max-targets", 100, "--protocol", protocol, "--json"]
        status, out, err = run("eval", "perplexity", base_model, "--data", text_folder, *options)
        assert status == 0, err
        assert json.loads(out)["perplexity"]["64"]["num_tokens"] == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["passkey", "MODEL", "--out", "OUT"], "needs 247 tokens without any filler"),
        (["passkey", "MODEL", "--out", "OUT", "--lengths", "400"], "the model has 64 positions, but prompt and"),
        (["passkey", "MODEL", "--out", "OUT", "--lengths", "x"], "--lengths must be whole numbers, as in 256,1024"),
        (["needle", "MODEL", "--out", "OUT", "--depths", "a"], "--depths must be numbers, as in 0,0.5,1; got 'a'"),
        (["needle", "MODEL", "--out", "OUT", "--depths", "50"], "depths must lie between 0 (beginning) and 1"),
        (["needle", "MODEL", "--out", "OUT", "--needles", "0"], "needles must be 1 to 64"),
        (["needle", "MODEL", "--out", "OUT", "--haystack", "EMPTY"], "EMPTY"),
        (["recall", "MODEL", "--out", "OUT", "--bar", "90"], "the bar must lie between 0 and 1, as in 0.8"),
        (["topics", "./nowhere", "--out", "OUT"], "there is no model directory"),
        (["tokens", "MODEL", "--data", "TEXTS", "--out", "OUT"], "a token file must be named .bin"),
        (["perplexity", "MODEL", "--data", "a.bin", "--data", "TEXTS"], "a .bin of tokens must be the only source"),
        (["perplexity", "MODEL", "--data", "a.bin"], "there is no token file a.bin"),
        (
            ["perplexity", "MODEL", "--data", "TEXTS", "--protocol", "original", "--max-targets", "9"],
            "leave out --max-targets",
        ),
    ],
)
def test_a_mistake_ends_in_one_message(
    run: Run, base_model: Path, text_folder: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    (tmp_path / "EMPTY").mkdir()
    places = {"MODEL": base_model, "TEXTS": text_folder, "OUT": tmp_path / "out", "EMPTY": tmp_path / "EMPTY"}
    status, _, err = run("eval", *(places.get(argument, argument) for argument in arguments))
    assert (status, expected in err, "Traceback" in err) == (2, True, False), err


def test_every_command_has_help(run: Run) -> None:
    for command in ("perplexity", "positions", "tokens", *COMMANDS):
        status, out, _ = run("eval", command, "--help")
        assert (status, "Usage" in out) == (0, True)


@pytest.mark.slow
def test_two_processes_do_the_work_of_one(run: Run, base_model: Path, tmp_path: Path) -> None:
    arguments = ["eval", "passkey", str(base_model), "--beyond", "--lengths", "300,400", "--depths", "0,1"]
    arguments += ["--trials", "2", "--json", "--out"]
    status, alone, err = run(*arguments, tmp_path / "one")
    assert status == 0, err
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "longlora.cli", *arguments, str(tmp_path / "two")],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[1][0] == ""  # the first one speaks
    assert json.loads(outputs[0][0])["lengths"] == json.loads(alone)["lengths"]
    logs = [(tmp_path / name / LOG_FILE).read_text(encoding="utf-8").splitlines() for name in ("one", "two")]
    trials = [[{**json.loads(line), "seconds": 0} for line in log[1:]] for log in logs]
    assert len(trials[0]) == 8 and trials[0] == trials[1]
    assert logs[0][0] == logs[1][0]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["passkey.png", "result.json", LOG_FILE]
