"""The terminal recording plays what a real run printed, and shows commands that exist."""

import importlib.util
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.test_documentation import parse

import longlora
from longlora.cli import main as cli

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def recording() -> Any:
    spec = importlib.util.spec_from_file_location("recording", REPOSITORY / "scripts" / "recording.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_run_in_a_terminal_is_recorded(recording: Any, tmp_path: Path) -> None:
    rows = recording.record(["longlora --version"], tmp_path)
    svg = recording.render(rows)
    assert [text for text in texts(svg) if "longlora" in text] == [
        "longlora --version",
        f"longlora {longlora.__version__}",
    ]
    with pytest.raises(RuntimeError, match="longlora train nothing ended with status 2"):
        recording.record(["longlora train nothing"], tmp_path)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"\r\x1b[2K\x1b[32mtraining\x1b[0m 1/2\r\x1b[2Ktraining 2/2", "training 2/2"),
        (b"\x1b[?25lplain", "plain"),
        (b"half \r", "half "),
    ],
)
def test_what_is_left_of_a_line(recording: Any, line: bytes, shown: str) -> None:
    assert recording._shown(line).plain == shown


def test_the_recording_of_the_pages_shows_commands_that_exist(recording: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = texts(recording.default_file().read_text(encoding="utf-8"))
    monkeypatch.setattr("longlora.support.locate.locate", lambda name: [])
    for command in recording.COMMANDS:
        assert command in shown
        parse(typer.main.get_command(cli.app), shlex.split(command)[1:])
    assert "merged into runs/tiny-1k/merged" in shown
