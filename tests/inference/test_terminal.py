"""The command itself: in a process with a keyboard (a pty), and within this one."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longlora.cli import main as cli

REPOSITORY = Path(__file__).resolve().parents[2]
CHAT = [sys.executable, "-m", "longlora.cli", "chat"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), *sys.path]), "COLUMNS": "100"}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command line in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["longlora", "chat", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "sums.txt"
    path.write_text("def add(first, second):\n    return first + second\n")
    return path


def test_one_answer_alone_goes_to_stdout(
    document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tiny", "--document", str(document), "--ask", "def subtract(", "--max-new-tokens", "12"]
    arguments += ["--dtype", "float32"]  # what is read in pieces gives the same words
    assert run(monkeypatch, *arguments) == 0
    first = capsys.readouterr()
    assert run(monkeypatch, *arguments, "--cache-document", str(document.parent / "kept")) == 0
    second = capsys.readouterr()
    assert run(monkeypatch, *arguments, "--cache-document", str(document.parent / "kept")) == 0
    third = capsys.readouterr()
    assert first.out == second.out == third.out != "\n"
    assert first.out.endswith("\n") and "INST" not in first.out and "tokens" not in first.out
    assert "sums.txt: 13 tokens" in first.err and "using the paper's prompt" in first.err
    assert "saved to" in second.err and "loaded from" in third.err


def test_mistakes_end_with_2_and_a_line(
    document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(*arguments: str) -> str:
        assert run(monkeypatch, "tiny", *arguments) == 2
        output = capsys.readouterr()
        assert output.out == ""
        return output.err.splitlines()[-1]

    scan = document.with_suffix(".docx")
    scan.write_bytes(b"PK")
    assert re.search(r"longlora: .*sums.docx .* convert it", complaint("--document", str(scan)))
    assert "nowhere.txt cannot be read" in complaint("--document", "nowhere.txt")
    document.write_text("word " * 1000)
    assert "let its middle be cut" in complaint("--document", str(document), "--no-cut")
    assert "more than tiny reads (256)" in complaint("--stream-window", "257")
    assert "max_new_tokens lower" in complaint("--max-new-tokens", "256")


def test_lines_of_stdin_are_questions_and_commands(
    document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = document.parent / "said"
    lines = [
        "def sub(",
        "",
        "/context",
        "/clear",
        "import os",
        f"/save '{saved}.json'",
        f"/save {saved}.txt",
        "/save",
        "/save /nowhere/x",
        "/nonsense",
        '/document "',
        "/document",
        "/document nowhere.txt",
        f"/document {document}",
        "/help",
        "/quit",
        "never",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert run(monkeypatch, "tiny", "--document", str(document), "--max-new-tokens", "8") == 0
    output = capsys.readouterr()
    for part in (
        "of 256 tokens",
        "had 18 in memory",
        "questions so far: 1",
        "forgotten",
        "name one file",
        "/nowhere/x cannot be written",
        "there is no /nonsense",
        "No closing quotation",
        "name one or several files",
        "longlora: nowhere.txt cannot be read",
        "Ctrl-C stops an answer or",
    ):
        assert part in output.err, part
    (question, answer) = json.loads(Path(f"{saved}.json").read_text())
    assert question == {"role": "user", "content": "import os"}
    assert answer["role"] == "assistant" and answer["content"].strip() in output.out
    assert Path(f"{saved}.txt").read_text().startswith("user: import os\n\nassistant: ")


def test_a_keyboard_interrupt_ends_the_answer_and_not_the_conversation(document: Path) -> None:
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        # Greedily this model goes on for ever, and a window lets it.
        [*CHAT, "tiny", "--stream-window", "64", "--max-new-tokens", "1000000"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment(),
    )
    os.close(terminal)
    screen = ""

    def wait_for(pattern: str) -> None:
        nonlocal screen
        until = time.monotonic() + 60
        while not re.search(pattern, screen):
            assert time.monotonic() < until and process.poll() is None, screen
            if select.select([keyboard], [], [], 1)[0]:
                screen += os.read(keyboard, 4096).decode(errors="replace")

    try:
        wait_for("> ")
        for question in (b"def first(\n", b"def second(\n"):
            screen = ""
            os.write(keyboard, question)
            wait_for(r"\(\r\n.*\S[^\n]*\S")  # the answer has begun
            process.send_signal(signal.SIGINT)
            wait_for(r"stopped[^>]*of 64 tokens[^>]*> ")
        os.write(keyboard, b"\x04")  # the end of input
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(keyboard)


def test_a_script_that_is_interrupted_knows_by_the_status(
    document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("longlora.inference.answer.StreamedAnswer.stopped", True)
    assert run(monkeypatch, "tiny", "--document", str(document), "--ask", "def subtract(") == cli.INTERRUPTED
    assert "resumes where it stopped" not in capsys.readouterr().err
