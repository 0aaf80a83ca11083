"""The journal: a line for each call sent, answered or failed, from which the records can be written at any time.

The first line holds the settings. A call is written down before it is sent, with what is reserved for it, and again
with its reply, which is on disk before anything is made of it. A process that is killed thus leaves calls without an
end: their reservation counts as spent.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from longlora.corpus.qa.calls import Call, Reply
from longlora.errors import ConfigError, DataError
from longlora.support.files import write_atomically

VERSION = 1
_NAME = "longlora corpus make-qa"


@dataclass
class Spent:
    """Tokens that were read and written by the model."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count some more."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens


class Journal:
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
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{path}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ConfigError(f"another process is at work on {path}; wait for it, or choose another file") from error
        try:
            self._open({"journal_version": VERSION, **settings})
        except BaseException:
            self._lock.release()
            raise

    def _open(self, settings: Mapping[str, Any]) -> None:
        # With a header alone nothing was asked: whoever looked at the costs may choose other settings.
        if _mend(self.path) == 0 or _is_header_alone(self.path):
            write_atomically(self.path, _line({"journal": _NAME, "settings": settings}))
        else:
            self._read(settings)
        self._file = self.path.open("a", encoding="utf-8")

    def __len__(self) -> int:
        """Number of replies."""
        return len(self._replies)

    def find(self, key: str) -> Reply | None:
        """Reply to a call, if there is one."""
        return self._replies.get(key)

    @property
    def seconds_per_call(self) -> float | None:
        """Mean time from sending a call to its reply; None before the first."""
        if not self._replies:
            return None
        return sum(reply.seconds for reply in self._replies.values()) / len(self._replies)

    def sent(self, call: Call, prompt_tokens: int, completion_tokens: int) -> None:
        """Write down that a call goes out, and the most it is thought to take."""
        self._note_sent(call.key, prompt_tokens, completion_tokens)
        self._append({"sent": call.key, "tokens": [prompt_tokens, completion_tokens]})

    def failed(self, call: Call, reason: str, *, may_be_charged: bool) -> None:
        """Write down that a call came to nothing."""
        self._note_failed(call.key, may_be_charged)
        self._append({"failed": call.key, "reason": reason, "may_be_charged": may_be_charged})

    def answered(self, call: Call, reply: Reply) -> None:
        """Write down a reply; it is on disk when this returns."""
        about = {
            "step": call.step,
            "template": call.template,
            "template_sha256": call.template_sha256,
            "document": call.document,
            "sections": call.sections,
            "seed": call.seed,
        }
        self._append({"reply": call.key, **about, **asdict(reply)}, is_synced=True)
        self._note_reply(call.key, reply)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()

    def _note_sent(self, key: str, prompt_tokens: int, completion_tokens: int) -> None:
        self._note_failed(key, True)  # it was under way when a process ended
        self._under_way[key] = prompt_tokens, completion_tokens

    def _note_failed(self, key: str, may_be_charged: bool) -> None:
        reserved = self._under_way.pop(key, None)
        if reserved and may_be_charged:
            self.spent.add(*reserved)

    def _note_reply(self, key: str, reply: Reply) -> None:
        self._under_way.pop(key, None)
        self.spent.add(reply.prompt_tokens, reply.completion_tokens)
        self._replies[key] = reply

    def _append(self, value: Mapping[str, Any], *, is_synced: bool = False) -> None:
        self._file.write(_line(value))
        self._file.flush()
        if is_synced:
            os.fsync(self._file.fileno())

    def _read(self, settings: Mapping[str, Any]) -> None:
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    value = json.loads(line)
                    if number == 1:
                        _check_same(self.path, value["settings"], json.loads(json.dumps(settings)))
                    else:
                        self._replay(value)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise DataError(
                        f"{self.path} cannot be read in line {number} ({type(error).__name__}: {error}); delete that "
                        "line, or choose another file"
                    ) from error
        for key in list(self._under_way):
            self._note_failed(key, True)

    def _replay(self, value: dict[str, Any]) -> None:
        if "sent" in value:
            prompt_tokens, completion_tokens = value["tokens"]
            self._note_sent(value["sent"], prompt_tokens, completion_tokens)
        elif "failed" in value:
            self._note_failed(value["failed"], value["may_be_charged"])
        else:
            fields = {name: value[name] for name in Reply.__dataclass_fields__}
            self._note_reply(value["reply"], Reply(**fields))


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _mend(path: Path) -> int:
    """Cut off a last line that an interruption tore, and return the size of what is left."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        whole = _after_last_newline(file, end)
        if whole < end:
            file.truncate(whole)
    return whole


def _is_header_alone(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        first, second = file.readline(), file.readline()
    return not second and first.startswith(_line({"journal": _NAME})[:-2])


def _after_last_newline(file: Any, end: int) -> int:
    block = 1 << 16
    while end > 0:
        begin = max(0, end - block)
        file.seek(begin)
        if (place := file.read(end - begin).rfind(b"\n")) >= 0:
            return begin + place + 1
        end = begin
    return 0


def _check_same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if differing:
        changes = ", ".join(f"{name} {there.get(name)!r} there and {here.get(name)!r} now" for name in differing)
        raise ConfigError(
            f"{path} belongs to a set with other settings ({changes}): use the same again, or choose another file"
        )
