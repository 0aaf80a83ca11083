"""A pytest plugin that writes each failed test as a line of JSON during the run, and limits the time of each test.

LADDER_FAILURES=FILE LADDER_TEST_SECONDS=120 python -m pytest -p _failing_tests …
"""

import faulthandler
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Generator
from types import FrameType
from typing import Any

import pytest
from _pytest._code.code import ExceptionRepr

_EVERY = 50
"""Number of tests after which the counts are written again."""

_counts: Counter[str] = Counter()


def _writes() -> bool:
    return "PYTEST_XDIST_WORKER" not in os.environ  # workers report to the main process, which writes


def _append(**row: Any) -> None:
    with open(os.environ["LADDER_FAILURES"], "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _error(report: pytest.TestReport) -> dict[str, str]:
    """Return the exception's first line, the last line that explains it, and where it was raised."""
    text = report.longreprtext.strip().splitlines() or [""]
    explained = [line[1:].strip() for line in text if line.startswith("E  ")] or text
    crash = report.longrepr.reprcrash if isinstance(report.longrepr, ExceptionRepr) else None
    error = crash.message.splitlines()[0] if crash and crash.message else explained[0]
    return {"error": error[:400], "explained": explained[-1][:400], "where": text[-1][:200]}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a failure immediately."""
    if not _writes():
        return
    if report.when == "call" or report.outcome != "passed":
        _counts[report.outcome] += 1
        if report.failed:
            _append(test=report.nodeid, when=report.when, **_error(report))
        elif sum(_counts.values()) % _EVERY == 0:
            _append(counts=dict(_counts))


def pytest_sessionfinish(exitstatus: int) -> None:
    """Write the number of tests with each outcome."""
    if _writes():
        _append(counts=dict(_counts), exit_status=int(exitstatus), finished=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that takes too long; end the process if the test cannot be interrupted."""
    seconds = int(os.environ.get("LADDER_TEST_SECONDS", "120"))

    def too_long(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{item.nodeid} took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    if not _writes():  # a worker that dies is replaced
        # A test may have replaced sys.stderr by something without a file descriptor.
        faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()
