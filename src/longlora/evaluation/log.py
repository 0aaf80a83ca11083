"""The log of finished trials: a line for each, on disk as soon as it is done, and never of two evaluations.

`trials.jsonl` begins with a line of settings. Every further line is a finished trial. When several processes share the
work each writes a file of its own, which the first of them puts into `trials.jsonl` at the end, or at the next start.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from longlora.errors import ConfigError, DataError
from longlora.evaluation.trials import FinishedTrial, TrialId
from longlora.support.files import write_atomically

LOG_FILE = "trials.jsonl"
_PARTS = "trials.part-*.jsonl"


def gather(folder: Path, settings: Mapping[str, Any], order: Iterable[TrialId] = ()) -> dict[TrialId, FinishedTrial]:
    """Put the files of all processes into one, in the given order first, and return every finished trial.

    Raises:
        ConfigError: the folder holds an evaluation with other settings.
        DataError: a file was changed by something else and cannot be read.
    """
    parts = sorted(folder.glob(_PARTS))
    order = list(order)
    found: dict[TrialId, FinishedTrial] = {}
    for path in (folder / LOG_FILE, *parts):
        found |= {trial.identity: trial for trial in _read(path, settings)}
    if parts:
        place = {identity: number for number, identity in enumerate(order)}
        sorted_trials = sorted(found.values(), key=lambda trial: place.get(trial.identity, len(place)))
        text = _header(settings) + "".join(trial.to_line() for trial in sorted_trials)
        write_atomically(folder / LOG_FILE, text)
        for path in parts:
            path.unlink()
    return found


class TrialLog:
    """Appends finished trials to this process's file."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, process: int = 0, num_processes: int = 1) -> None:
        name = LOG_FILE if num_processes == 1 else f"trials.part-{process}-of-{num_processes}.jsonl"
        self.path = folder / name
        if _mend(self.path) == 0:
            self.path.write_text(_header(settings), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, trial: FinishedTrial) -> None:
        """Write a trial's line and hand it to the operating system at once."""
        self._file.write(trial.to_line())
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _header(settings: Mapping[str, Any]) -> str:
    return json.dumps({"settings": settings}, ensure_ascii=False) + "\n"


def _mend(path: Path) -> int:
    """Cut off a last line that an interruption tore, and return the size of what is left."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    return whole


def _read(path: Path, settings: Mapping[str, Any]) -> list[FinishedTrial]:
    if _mend(path) == 0:
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    values = [_parse(path, number, line) for number, line in enumerate(lines, start=1)]
    try:
        _check_same(path, values[0]["settings"], json.loads(json.dumps(settings)))
        return [FinishedTrial(**value) for value in values[1:]]
    except (TypeError, KeyError) as error:
        raise DataError(f"{path} is no log of trials ({error}); delete it or choose another folder") from error


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{path} cannot be read in line {number} ({error}); delete that line or choose another folder"
        ) from error


def _check_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if differing:
        changes = ", ".join(f"{name} {there.get(name)!r} there and {here.get(name)!r} now" for name in differing)
        raise ConfigError(
            f"{path} holds trials of another evaluation ({changes}): choose another folder, or delete that one"
        )
