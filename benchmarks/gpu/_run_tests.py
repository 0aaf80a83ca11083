"""The step `tests`: run all tests, those that use the GPU first, and write failures as they occur."""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1] / "tests"
# Tests that allocate memory or compute on the GPU if there is one.
FIRST = ("attention", "training", "register", "test_memory.py", "test_model.py", "test_lora.py", "merge", "evaluation")


def run_tests(arguments: argparse.Namespace) -> int:
    """Run pytest until it ends or the time is up; return 0 in both cases, as failures are the result."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = arguments.out / "tests.jsonl"
    paths = arguments.tests or [str(path) for path in sorted(_collections(), key=_rank)]
    if arguments.dry and not arguments.tests:
        paths = [str(TESTS / "structure" / "test_public_names.py")]
    # pytest-benchmark warns if pytest-xdist is in use, and warnings are errors here.
    plugins = ["-p", "no:benchmark", "-p", "_failing_tests"]
    command = [sys.executable, "-m", "pytest", *plugins, "-q", "--no-header", *paths]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(1 if arguments.dry else arguments.workers)]
    environment = os.environ | {"LADDER_FAILURES": str(rows)}
    given = os.environ.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(TESTS.parent / "src"), *([given] if given else [])])
    print(f"rows go to {rows}", flush=True)
    process = subprocess.Popen(command, cwd=TESTS.parent, env=environment, start_new_session=True)
    try:
        process.wait(arguments.seconds)
    except subprocess.TimeoutExpired:
        print("time is up", flush=True)
        process.send_signal(signal.SIGINT)  # pytest reports the results so far
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return 0


def _collections() -> list[Path]:
    return [
        path
        for path in TESTS.iterdir()
        if path.name.startswith("test_") or (path.is_dir() and any(path.rglob("test_*.py")))
    ]


def _rank(path: Path) -> tuple[int, str]:
    return (FIRST.index(path.name) if path.name in FIRST else len(FIRST), path.name)
