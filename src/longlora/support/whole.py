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
from longlora.support.machine import user_cache

# Files that users may edit: a change is logged and accepted.
BY_HAND = ("generation_config.json", "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json")
VERIFY_VARIABLE = "LONGLORA_VERIFY"
_VERIFIED = "verified.json"  # in the user's cache: large files verified before
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
    known, seen = _verified_files(), dict[str, list[Any]]()

    def is_known(path: Path, digest: str) -> bool:
        """Return whether a large file is unchanged, by its metadata, since it was verified to have this digest."""
        stat = path.stat()
        if stat.st_size < _LARGE:
            return False
        name = str(path.resolve())
        seen[name] = [digest, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev, stat.st_ino]
        return bool(known.get(name) == seen[name]) and not os.environ.get(VERIFY_VARIABLE)

    for name, damage in differences(directory, is_known):
        if name not in BY_HAND:
            return damage
        logger.warning("%s: %s; the present content is used", directory, damage)
    if known | seen != known:
        there = {name: facts for name, facts in known.items() if Path(name).exists()}
        with suppress(ConfigError, OSError):  # without a cache, all files are read again next time
            user_cache().mkdir(parents=True, exist_ok=True)
            write_atomically(user_cache() / _VERIFIED, json.dumps(there | seen, indent=1) + "\n")
    return ""


def _verified_files() -> dict[str, Any]:
    with suppress(ConfigError, OSError, ValueError):
        if isinstance(read := json.loads((user_cache() / _VERIFIED).read_text()), dict):
            return read
    return {}
