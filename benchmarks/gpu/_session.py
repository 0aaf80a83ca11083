"""The basis of the ladder's steps: JSON rows that survive an interruption, and a deadline for each step.

A row is written and flushed as soon as its case is measured. A case that has a row is not run again, so an interrupted
step resumes where it ended. If time runs out during a case, its row says so, with the memory that the case used.
"""

import gc
import json
import os
import platform
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import _report
import torch

GIB = 2**30
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PACKAGES = ("torch", "transformers", "peft", "trl", "flash-attn", "bitsandbytes")
Row = dict[str, Any]


class OutOfTime(Exception):
    """No more cases may begin."""


class Session:
    """One step of the ladder: its file of rows, its deadline, and the current case."""

    def __init__(self, step: str, folder: Path, *, seconds: float, dry: bool) -> None:
        card = _report.device_name(DEVICE).lower().replace("nvidia ", "") if DEVICE.type == "cuda" else "cpu"
        slug = "-".join(filter(None, [step, *"".join(c if c.isalnum() else " " for c in card).split(), "dry" * dry]))
        folder.mkdir(parents=True, exist_ok=True)
        self.dry = dry
        self.path = folder / f"{slug}.jsonl"
        self.progress = folder / f"{slug}-progress.jsonl"
        self._origin = {"step": step, "card": card, "python": platform.python_version(), **_versions()}
        self._origin |= {"commit": _report.commit(), "dry": dry}
        self._began = time.monotonic()
        self._deadline = self._began + seconds
        self._lock = threading.Lock()
        self._current: tuple[str, Row, float] | None = None
        self.rows = {row["case"]: row for row in _rows(self.path) if not row.get("interrupted")}
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def seconds_left(self) -> float:
        """Seconds until the step ends."""
        return self._deadline - time.monotonic()

    def write(self, case: str, **values: Any) -> Row:
        """Append a row and flush it."""
        row = {"case": case, **values, **self._origin, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        with self._lock:
            _append(self.path, row)
            self.rows[case] = row
        shown = {key: value for key, value in row.items() if key not in self._origin and key not in ("date", "profile")}
        print(json.dumps(shown, default=str), flush=True)
        return row

    def run(self, case: str, settings: Row, measure: Callable[[], Row]) -> Row:
        """Measure a case, or return its row; if it fails, the row contains the error, and the step continues.

        Raises:
            OutOfTime: the step's time is up.
            SystemExit: the CUDA context is lost; the next start of the step resumes with the next case.
        """
        if case in self.rows:
            return self.rows[case]
        if self.seconds_left <= 0:
            raise OutOfTime
        release_memory()
        failure: Row = {}
        numbers: Row = {}
        began = time.monotonic()
        self._current = (case, settings, began)
        try:
            numbers = measure()
        except torch.OutOfMemoryError as error:
            failure = {"error": "out of memory", "message": _first_line(error)}
        except Exception as error:
            failure = {"error": type(error).__name__, "message": _first_line(error), "where": _places(error)}
        self._current = None
        memory = memory_held() if failure else {}  # otherwise the row has its own measurements of memory
        row = self.write(case, **settings, **numbers, **failure, **memory, wall_s=round(time.monotonic() - began, 2))
        if failure.get("error") == "AcceleratorError" or "CUDA error" in failure.get("message", ""):
            raise SystemExit(f"the CUDA context is lost after {case!r}; start the step again to resume after it")
        return row

    def _watch(self) -> None:
        """Write the progress of a case every few seconds, and end the process when the time is up."""
        while True:
            time.sleep(min(4.0, max(0.05, self.seconds_left)))
            current = self._current
            if current is None:
                continue
            case, settings, began = current
            state = {"seconds": round(time.monotonic() - began, 1), **memory_held()}
            with self._lock:
                _append(self.progress, {"case": case, **state})
            if self.seconds_left <= 0:
                self.write(case, **settings, interrupted=True, **state)
                print("time is up", flush=True)
                os._exit(0)  # the main thread may be in a kernel for minutes


def memory_held() -> Row:
    """Return the peak memory of the current case so far, in GiB; empty without a GPU."""
    if not torch.cuda.is_initialized():
        return {}
    return {
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 3),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 3),
    }


def release_memory() -> None:
    """Release the previous case's memory, and reset the peaks."""
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _versions() -> Row:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last line may be incomplete
    return [json.loads(line) for line in whole if line]


def _append(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, default=str) + "\n")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]


def _places(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
