"""A bar that nobody watches."""

import threading

import pytest

from longlora.support.progress import shown


def test_without_a_terminal_nothing_redraws_and_the_end_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.active_count()
    threads = [threading.active_count() for _ in shown(range(3), "Reading", total=3)]
    assert threads == [before] * 3
    assert "Reading" in (said := capsys.readouterr().err) and "3/3" in said
