"""Check models and adapters against their digests (`support/digests.py`) before use.

Large files are read only once: the user's cache records their digest with size, times and inode, and a file for which
these are unchanged is not read again, unless the environment variable LONGLORA_VERIFY is set.
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

# Files that users may edit: a change is logged and accepted.
BY_HAND = ("generation_config.json", "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json")
VERIFY_VARIABLE = "LONGLORA_VERIFY"
_LARGE = 256 << 20  # bytes; smaller files are read in half a second

logger = logging.getLogger("longlora")


def check_whole(directory: Path) -> None:
    """Check a sealed directory against its digests; directories that longlora did not write have none and pass.

    Raises:
        CheckpointError: a file differs.
    """
    if is_sealed(directory) and (damage := damage_of(directory)):
        raise CheckpointError(
            f"{directory} is not as it was written: {damage}; copy it again, or recreate it (if you changed it on "
            f"purpose, delete its {DIGESTS_FILE})"
        )


def damage_of(directory: Path) -> str:
    """Describe how a sealed directory differs from its digests; empty if only files of `BY_HAND` do."""
    known = _KnownFiles()
    for name, damage in differences(directory, known.has):
        if name not in BY_HAND:
            return damage
        logger.warning("%s: %s; the present content is used", directory, damage)
    known.keep()
    return ""


class _KnownFiles:
    """The large files verified before, as listed in `verified.json` in the user's cache."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}
        self._seen: dict[str, Any] = {}
        self._file: Path | None = None
        with suppress(ConfigError, OSError, ValueError):
            self._file = user_cache() / "verified.json"
            if isinstance(read := json.loads(self._file.read_text()), dict):
                self._known = read

    def has(self, path: Path, digest: str) -> bool:
        """Return whether a file is unchanged, by its metadata, since it was verified to have this digest."""
        stat = path.stat()
        if stat.st_size < _LARGE:
            return False
        facts = [digest, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev, stat.st_ino]
        name = str(path.resolve())
        self._seen[name] = facts
        return bool(self._known.get(name) == facts) and not os.environ.get(VERIFY_VARIABLE)

    def keep(self) -> None:
        """Record all files passed to `has` as verified; without a cache they are read again next time."""
        if self._file is None or all(self._known.get(name) == facts for name, facts in self._seen.items()):
            return
        there = {name: facts for name, facts in self._known.items() if Path(name).exists()}
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(there | self._seen, indent=1) + "\n")
