"""A journal: JSON lines below a header of settings, from which a killed run resumes without repeating work."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from longlora.errors import ConfigError, DataError
from longlora.support.files import claim, write_atomically

Entry = TypeVar("Entry")


def _as_it_is(value: Any) -> Any:
    return value


class Journal:
    """Appends lines to a file that belongs to one set of settings and to one process at a time.

    A file with only a header gets the new settings.

    Raises:
        ConfigError: another process has it open, or it was begun with other settings.
        DataError: a line is not JSON, or `parse` fails on it.
    """

    entries: list[Any]
    """The parsed lines below the header when the journal was opened."""

    def __init__(self, path: Path, settings: Mapping[str, Any], parse: Callable[[Any], object] = _as_it_is) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        refusal = f"another process is using {path}; wait for it, or choose another path"
        self._lock = claim(Path(f"{path}.lock"), refusal).lock
        try:
            self.entries = read_journal(path, settings, parse)
            if not self.entries:
                write_atomically(path, json_line({"settings": settings}))
            self._file = path.open("a", encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise

    def append(self, value: Mapping[str, Any], *, is_synced: bool = False) -> None:
        """Append a line without buffering; `is_synced` waits until it is on disk."""
        self._file.write(json_line(value))
        self._file.flush()
        if is_synced:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal, so that other processes can open it."""
        self._file.close()
        self._lock.release()


def read_journal(path: Path, settings: Mapping[str, Any], parse: Callable[[Any], Entry] = _as_it_is) -> list[Entry]:
    """Parse every line below the header; none if the file does not exist or has only a header.

    Raises:
        ConfigError: the journal was begun with other settings.
        DataError: a line is not JSON, or `parse` fails on it.
    """
    lines: list[Any] = read_json_lines(path)
    if not lines:
        return []
    header = lines[0]["settings"] if isinstance(lines[0], dict) and "settings" in lines[0] else None
    if not isinstance(header, dict):
        raise DataError(f"{path} is not a journal: its first line contains no settings; choose another path")
    if len(lines) > 1:
        check_same_settings(path, header, settings)
    return [_parsed(path, number, value, parse) for number, value in enumerate(lines[1:], start=2)]


def read_json_lines(path: Path, parse: Callable[[Any], Entry] = _as_it_is) -> list[Entry]:
    """Parse every line, and cut off an incomplete last line that an interruption left.

    Raises:
        DataError: a line is not JSON, or `parse` fails on it.
    """
    entries: list[Entry] = []
    if not path.exists():
        return entries
    with path.open("r+b") as file:
        end = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                file.truncate(end)
                break
            end += len(line)
            entries.append(_parsed(path, number, line, lambda text: parse(json.loads(text))))
    return entries


def json_line(value: Mapping[str, Any]) -> str:
    """Return a line of JSON, with its newline."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def check_same_settings(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that the settings in `path` equal the current ones, compared as JSON.

    Raises:
        ConfigError: they differ; the message lists every difference.
    """
    here = json.loads(json.dumps(here))
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if differing:
        changes = ", ".join(f"{name} {there.get(name)!r} there and {here.get(name)!r} now" for name in differing)
        raise ConfigError(f"{path} was begun with other settings ({changes}): use the same, or choose another path")


def _parsed(path: Path, number: int, value: Any, parse: Callable[[Any], Entry]) -> Entry:
    try:
        return parse(value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read in line {number} ({type(error).__name__}: {error}); delete that line, or choose "
            "another path"
        ) from error
