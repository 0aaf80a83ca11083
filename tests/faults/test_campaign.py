"""The campaigns notice what they are to notice."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.campaign import forked, watch


def test_what_an_input_executes_or_opens_is_noticed(tmp_path: Path) -> None:
    def work(send: Callable[[Any], None]) -> None:
        done = watch()
        (tmp_path / "own").write_text("allowed")
        send(list(done))
        subprocess.run(["true"], check=True)
        (tmp_path / Path("../" * 20) / "etc" / "passwd").read_text()
        send(done)

    (before, after), status, _ = forked(work, tmp_path / "log")
    assert status == 0
    assert before == []
    assert [entry.split()[0] for entry in after] == ["subprocess.Popen", "open"]
    assert after[1] == "open /etc/passwd"
