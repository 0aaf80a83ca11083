"""Whether a model or an adapter is still as it was written, before it is used (`support/digests.py` noted what it was).

Weights of many GiB are read to the end for that once: the user's cache keeps which large file, of what size, times and
place on the disk, had which digest, and a file that is still the same by these is not read again, unless the
environment variable LONGLORA_VERIFY is set.
"""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from longlora.errors import CheckpointError, ConfigError
from longlora.support.digests import DIGESTS_FILE, differences, is_sealed
from longlora.support.files import write_atomically
from longlora.support.user_cache import user_cache

# Files that people write in. What they change is told, and followed.
BY_HAND = ("generation_config.json", "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json")
VERIFY_VARIABLE = "LONGLORA_VERIFY"
_LARGE = 256 << 20  # bytes; less is read in half a second

logger = logging.getLogger("longlora")


def check_whole(directory: Path) -> None:
    """See that a directory is as it was written, if that was noted; one that something else wrote says nothing of it.

    Raises:
        CheckpointError: it is not.
    """
    if is_sealed(directory) and (damage := damage_of(directory)):
        raise CheckpointError(
            f"{directory} is not as it was written: {damage}; copy it again, or make it anew (if you changed it on "
            f"purpose, delete its {DIGESTS_FILE})"
        )


def damage_of(directory: Path) -> str:
    """Say how a directory that was sealed differs from what was written; empty where only people's files do."""
    known = _KnownFiles()
    for name, damage in differences(directory, known.has):
        if name not in BY_HAND:
            return damage
        logger.warning("%s: %s; what is there now is used", directory, damage)
    known.keep()
    return ""


class _KnownFiles:
    """Large files whose digests have been compared before, as `verified.json` in the user's cache lists them."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}
        self._seen: dict[str, Any] = {}
        self._file: Path | None = None
        with suppress(ConfigError, OSError, ValueError):
            self._file = user_cache() / "verified.json"
            if isinstance(read := json.loads(self._file.read_text()), dict):
                self._known = read

    def has(self, path: Path, digest: str) -> bool:
        """Whether a file is, by all that the system tells of it, the one that had this digest."""
        stat = path.stat()
        if stat.st_size < _LARGE:
            return False
        facts = [digest, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev, stat.st_ino]
        name = str(path.resolve())
        self._seen[name] = facts
        return bool(self._known.get(name) == facts) and not os.environ.get(VERIFY_VARIABLE)

    def keep(self) -> None:
        """Note that all files asked for have their digests; without a cache they are read again next time."""
        if self._file is None or all(self._known.get(name) == facts for name, facts in self._seen.items()):
            return
        there = {name: facts for name, facts in self._known.items() if Path(name).exists()}
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(there | self._seen, indent=1) + "\n")
