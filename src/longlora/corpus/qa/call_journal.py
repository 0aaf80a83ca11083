"""The journal: a line for each call sent, answered or failed, from which the records can be written at any time.

The first line holds the settings. A call is written down before it is sent, with what is reserved for it, and again
with its reply, which is on disk before anything is made of it. A process that is killed thus leaves calls without an
end: their reservation counts as spent.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from longlora.corpus.qa.calls import Call, Reply
from longlora.corpus.qa.sending import Spent
from longlora.support.journal import Journal

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
        self._lines = Journal(path, {"journal_version": VERSION, **settings}, self._replay)
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
