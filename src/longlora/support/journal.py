"""A journal: lines of JSON below a header of settings, from which a killed run resumes without doing anything twice."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from filelock import FileLock, Timeout

from longlora.errors import ConfigError, DataError
from longlora.support.files import write_atomically

Entry = TypeVar("Entry")
_BLOCK_BYTES = 1 << 16


def _as_it_is(value: Any) -> Any:
    return value


class Journal:
    """Appends lines to a file that belongs to one set of settings; one process at a time has it open.

    Where the file holds no more than a header, it takes the settings of today.

    Raises:
        ConfigError: another process has it open, or it was begun with other settings.
        DataError: a line of it is no JSON, or `parse` fails on it.
    """

    entries: list[Any]
    """What stood below the header when it was opened, through `parse`."""

    def __init__(self, path: Path, settings: Mapping[str, Any], parse: Callable[[Any], object] = _as_it_is) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{path}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ConfigError(f"another process is at work on {path}; wait for it, or choose another place") from error
        try:
            self.entries = read_journal(path, settings, parse)
            if not self.entries:
                write_atomically(path, json_line({"settings": settings}))
            self._file = path.open("a", encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise

    def append(self, value: Mapping[str, Any], *, is_synced: bool = False) -> None:
        """Hand a line to the operating system at once; `is_synced` waits until it is on the disk."""
        self._file.write(json_line(value))
        self._file.flush()
        if is_synced:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others open it."""
        self._file.close()
        self._lock.release()


def read_journal(path: Path, settings: Mapping[str, Any], parse: Callable[[Any], Entry] = _as_it_is) -> list[Entry]:
    """Read every line below the header through `parse`; none where there is no file, or no more than a header.

    Raises:
        ConfigError: it was begun with other settings.
        DataError: a line is no JSON, or `parse` fails on it.
    """
    lines: list[Any] = read_json_lines(path)
    if not lines:
        return []
    header = lines[0]["settings"] if isinstance(lines[0], dict) and "settings" in lines[0] else None
    if not isinstance(header, dict):
        raise DataError(f"{path} is no journal: its first line holds no settings; choose another place")
    if len(lines) > 1:
        check_same_settings(path, header, settings)
    return [_parsed(path, number, value, parse) for number, value in enumerate(lines[1:], start=2)]


def read_json_lines(path: Path, parse: Callable[[Any], Entry] = _as_it_is) -> list[Entry]:
    """Read every line through `parse`, after cutting off a last one that an interruption tore.

    Raises:
        DataError: a line is no JSON, or `parse` fails on it.
    """
    if not path.exists():
        return []
    _cut_torn_line(path)
    with path.open("rb") as file:
        return [
            _parsed(path, number, line, lambda text: parse(json.loads(text))) for number, line in enumerate(file, 1)
        ]


def json_line(value: Mapping[str, Any]) -> str:
    """One line of JSON, with its end."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def check_same_settings(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """See that what `path` was begun with is what is wanted now, both as JSON has them.

    Raises:
        ConfigError: it is not; every value that differs is named.
    """
    here = json.loads(json.dumps(here))
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if differing:
        changes = ", ".join(f"{name} {there.get(name)!r} there and {here.get(name)!r} now" for name in differing)
        raise ConfigError(f"{path} was begun with other settings ({changes}): use the same, or choose another place")


def _parsed(path: Path, number: int, value: Any, parse: Callable[[Any], Entry]) -> Entry:
    try:
        return parse(value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read in line {number} ({type(error).__name__}: {error}); delete that line, or choose "
            "another place"
        ) from error


def _cut_torn_line(path: Path) -> None:
    """Cut what follows the last newline, which is looked for from the end, a block at a time."""
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        whole = 0
        while end > 0 and not whole:
            begin = max(0, end - _BLOCK_BYTES)
            file.seek(begin)
            if (place := file.read(end - begin).rfind(b"\n")) >= 0:
                whole = begin + place + 1
            end = begin
        if whole < size:
            file.truncate(whole)
