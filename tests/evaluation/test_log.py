"""Finished trials are never lost, never counted twice and never mixed with those of another evaluation."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from longlora.distributed import Processes
from longlora.errors import ConfigError, DataError
from longlora.evaluation.questions import FinishedTrial
from longlora.evaluation.retrieval import LOG_FILE, gather, open_log

SETTINGS = {"test": "x", "seed": 0, "depth": (1, 2)}


def trial(number: int, answer: str = "né 1\n2\u2028") -> FinishedTrial:
    return FinishedTrial(
        test="x",
        length=8,
        depth=0.5,
        number=number,
        seed=number,
        num_tokens=5,
        distance=3,
        expected=["1"],
        answer=answer,
        scores={"generated": 1.0},
    )


def write(folder: Path, numbers: range, *, process: int = 0, num_processes: int = 1) -> Path:
    with open_log(folder, SETTINGS, Processes(index=process, count=num_processes)) as log:
        for number in numbers:
            log.append(asdict(trial(number)))
    (path,) = folder.glob(f"trials.part-{process}-*.jsonl" if num_processes > 1 else LOG_FILE)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    assert gather(tmp_path, SETTINGS) == {}
    write(tmp_path, range(2))
    write(tmp_path, range(2, 3))
    assert gather(tmp_path, SETTINGS) == {trial(number).identity: trial(number) for number in range(3)}
    assert len((tmp_path / LOG_FILE).read_bytes().splitlines()) == 4


def test_a_trial_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    with open_log(tmp_path, SETTINGS, Processes()) as log:
        log.append(asdict(trial(0)))
        assert list(gather(tmp_path, SETTINGS).values()) == [trial(0)]


def test_a_line_torn_anywhere_is_done_again(tmp_path: Path) -> None:
    path = write(tmp_path, range(2))
    whole = path.read_bytes()
    keep = whole[: whole.rstrip(b"\n").rfind(b"\n") + 1]
    for cut in range(len(keep), len(whole)):
        path.write_bytes(whole[:cut])
        assert list(gather(tmp_path, SETTINGS)) == [trial(0).identity]
        write(tmp_path, range(1, 2))
        assert path.read_bytes() == whole


def test_a_torn_header_is_written_again(tmp_path: Path) -> None:
    path = write(tmp_path, range(1))
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    assert gather(tmp_path, SETTINGS) == {}
    write(tmp_path, range(1))
    assert path.read_bytes() == whole


def test_the_files_of_several_processes_become_one_in_order(tmp_path: Path) -> None:
    write(tmp_path, range(0, 6, 2), process=0, num_processes=2)
    write(tmp_path, range(1, 6, 2), process=1, num_processes=2)
    order = [trial(number).identity for number in range(6)]
    assert set(gather(tmp_path, SETTINGS, order)) == set(order)
    assert [path.name for path in tmp_path.iterdir()] == [LOG_FILE]
    lines = (tmp_path / LOG_FILE).read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["number"] for line in lines[1:-1]] == list(range(6))


def test_other_settings_are_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    path = write(tmp_path, range(1))
    before = path.read_bytes()
    for other in (SETTINGS | {"seed": 1}, SETTINGS | {"new": 1}, {"test": "x", "depth": (1, 2)}):
        with pytest.raises(ConfigError, match=r"was begun with other settings \((seed|new) .* there and .* now"):
            gather(tmp_path, other)
    assert path.read_bytes() == before
    write(tmp_path, range(1, 2), process=1, num_processes=2)
    path.unlink()
    with pytest.raises(ConfigError, match="part-1-of-2"):
        gather(tmp_path, SETTINGS | {"seed": 1})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: [lines[0], "{}}", lines[1]], "cannot be read in line 2"),
        (lambda lines: [lines[0], '{"a": 1}', lines[1]], "cannot be read in line 2"),
        (lambda lines: [lines[1]] * 2, "is not a journal"),
        (lambda lines: ["[]", lines[1]], "is not a journal"),
    ],
)
def test_a_file_that_was_changed(tmp_path: Path, spoil: object, message: str) -> None:
    path = write(tmp_path, range(1))
    path.write_text("\n".join(spoil(path.read_text().split("\n")[:-1])) + "\n")  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        gather(tmp_path, SETTINGS)


def test_a_score_that_is_no_number_is_a_bug_of_ours() -> None:
    with pytest.raises(AssertionError, match="is not finite"):
        FinishedTrial(**vars(trial(0)) | {"scores": {"margin": float("nan")}})
