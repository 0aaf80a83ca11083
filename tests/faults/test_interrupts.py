"""An interrupt that Python would drop, because a finalizer is running, ends the command all the same."""

import signal
import sys
import threading
import time

import pytest

from longlora.cli import main as cli


class Dies:
    def __del__(self) -> None:
        raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def command_with_an_interrupted_finalizer(monkeypatch: pytest.MonkeyPatch):
    def work() -> None:
        Dies()
        time.sleep(10)

    monkeypatch.setattr(cli, "app", work)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's workers ignore it
    yield
    signal.signal(signal.SIGINT, handler)


def test_an_interrupt_inside_a_finalizer_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt):
        cli.main()
    assert sys.unraisablehook is before
    assert "Exception ignored" not in capsys.readouterr().err


def test_an_interrupt_while_its_repetition_is_prepared_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the timer's thread may start so late that its signal finds the hook still waiting for it."""
    starts: list[float] = []

    class Late(threading.Timer):
        def start(self) -> None:
            starts.append(time.monotonic())
            super().start()
            if len(starts) == 1:
                time.sleep(1)

    monkeypatch.setattr(threading, "Timer", Late)
    with pytest.raises(KeyboardInterrupt):
        cli.main()
    assert len(starts) == 2
