"""The journal: a line for each call sent, answered or failed, from which the records can be written at any time.

The first line holds the settings. A call is written down before it is sent, with what is reserved for it, and again
with its reply, which is on disk before anything is made of it. A process that is killed thus leaves calls without an
end: their reservation counts as spent.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from longlora.checkpoint import write_atomically
from longlora.corpus.qa.calls import Call, Reply
from longlora.corpus.qa.sending import Spent
from longlora.errors import ConfigError, DataError

VERSION = 1


class CallJournal:
    """Finds replies, and keeps new ones. One process at a time has it open.

    Raises:
        ConfigError: it belongs to a set with other settings, or another process has it open.
        DataError: the file was changed by something else and cannot be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.spent = Spent()
        self._replies: dict[str, Reply] = {}
        self._under_way: dict[str, tuple[int, int]] = {}
        self._lines = Journal(path, {"journal_version": VERSION, **settings})
        for number, line in enumerate(self._lines.entries, start=2):
            try:
                self._replay(line)
            except (TypeError, KeyError, AttributeError, ValueError) as error:
                self._lines.close()
                raise _unreadable(path, number, error) from error
        for key in list(self._under_way):
            self._note_failed(key, True)

    def __len__(self) -> int:
        """Number of replies."""
        return len(self._replies)

    def find(self, key: str) -> Reply | None:
        """Reply to a call, if there is one."""
        return self._replies.get(key)

    @property
    def seconds_per_call(self) -> float | None:
        """Mean time from sending a call to its reply; None before the first."""
        return sum(reply.seconds for reply in self._replies.values()) / len(self) if self._replies else None

    def sent(self, call: Call, prompt_tokens: int, completion_tokens: int) -> None:
        """Write down that a call goes out, and the most it is thought to take."""
        self._write({"sent": call.key, "tokens": [prompt_tokens, completion_tokens]})

    def failed(self, call: Call, reason: str, *, may_be_charged: bool) -> None:
        """Write down that a call came to nothing."""
        self._write({"failed": call.key, "reason": reason, "may_be_charged": may_be_charged})

    def answered(self, call: Call, reply: Reply) -> None:
        """Write down a reply; it is on disk when this returns."""
        about = ("step", "template", "template_sha256", "document", "sections", "seed")
        origin = {name: getattr(call, name) for name in about}
        self._write({"reply": call.key, **origin, **asdict(reply)}, is_synced=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()

    def _write(self, line: dict[str, Any], *, is_synced: bool = False) -> None:
        self._lines.append(line, is_synced=is_synced)
        self._replay(line)

    def _replay(self, line: dict[str, Any]) -> None:
        if "sent" in line:
            prompt_tokens, completion_tokens = line["tokens"]
            self._note_failed(line["sent"], True)  # it was under way when a process ended
            self._under_way[line["sent"]] = prompt_tokens, completion_tokens
        elif "failed" in line:
            self._note_failed(line["failed"], line["may_be_charged"])
        else:
            reply = Reply(**{name: line[name] for name in Reply.__dataclass_fields__})
            self._under_way.pop(line["reply"], None)
            self.spent.add(reply.prompt_tokens, reply.completion_tokens)
            self._replies[line["reply"]] = reply

    def _note_failed(self, key: str, may_be_charged: bool) -> None:
        reserved = self._under_way.pop(key, None)
        if reserved and may_be_charged:
            self.spent.add(*reserved)


class Journal:
    """JSON lines under a header of settings, appended by one process at a time; a torn last line is cut off.

    Where the file holds no more than a header, it takes the settings of today.
    """

    entries: list[dict[str, Any]]
    """What stood below the header when it was opened."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{path}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ConfigError(f"another process is at work on {path}; wait for it, or choose another file") from error
        try:
            self.entries = _read(path, settings)
            if not self.entries:
                write_atomically(path, _line({"settings": settings}))
            self._file = path.open("a", encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise

    def append(self, value: Mapping[str, Any], *, is_synced: bool) -> None:
        """Write a line and hand it to the operating system; synced, it is on disk when this returns."""
        self._file.write(_line(value))
        self._file.flush()
        if is_synced:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others open it."""
        self._file.close()
        self._lock.release()


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _read(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    lines = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                lines.append(json.loads(line))
                there = lines[0]["settings"]
            except (TypeError, KeyError, ValueError) as error:
                raise _unreadable(path, number, error) from error
    if len(lines) > 1:
        _check_same(path, there, json.loads(json.dumps(settings)))
    return lines[1:]


def _unreadable(path: Path, number: int, error: Exception) -> DataError:
    reason = f"{type(error).__name__}: {error}"
    return DataError(f"{path} cannot be read in line {number} ({reason}); delete that line, or choose another file")


def _check_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if differing:
        changes = ", ".join(f"{name} {there.get(name)!r} there and {here.get(name)!r} now" for name in differing)
        raise ConfigError(
            f"{path} belongs to a set with other settings ({changes}): use the same again, or choose another file"
        )
