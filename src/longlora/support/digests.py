"""Seal a directory with `digests.json` (names, sizes and digests of its files), and verify it later.

`digests.json` is written last, when all other files are on disk: a directory that has it is complete. If its files
differ from it, they were damaged or edited later.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

from longlora.support.machine import thread_pool

DIGESTS_FILE = "digests.json"
_FREE = {DIGESTS_FILE, "README.md"}  # users may edit the model card
_THREADS = 8  # hashlib releases the GIL, and a large model has many files


def seal(directory: Path) -> None:
    """Flush all files of a directory to disk and write their digests; each file is read once.

    `benchmarks/digests.py` measures the cost.
    """
    digests_file = directory / DIGESTS_FILE
    digests_file.unlink(missing_ok=True)
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    with thread_pool(_THREADS) as pool:
        entries = list(pool.map(_flushed_entry, paths))
    names = [path.relative_to(directory).as_posix() for path in paths]
    noted = {name: entry for name, entry in zip(names, entries, strict=True) if name not in _FREE}
    digests_file.write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")
    for path in (digests_file, *(path for path in directory.rglob("*") if path.is_dir()), directory):
        flush(path)


def is_sealed(directory: Path) -> bool:
    """Return whether a directory was written completely."""
    return (directory / DIGESTS_FILE).is_file()


def find_damage(directory: Path) -> str:
    """Describe the first difference from the digests; empty if there is none. Files added later are ignored."""
    return next((damage for _, damage in differences(directory)), "")


def differences(
    directory: Path, is_known: Callable[[Path, str], bool] = lambda path, digest: False
) -> Iterator[tuple[str, str]]:
    """Yield each file that differs from its digest, with a one-sentence description.

    Args:
        directory: a sealed directory.
        is_known: returns whether a file is already known to have a digest, so that it is not read.
    """
    try:
        noted = json.loads((directory / DIGESTS_FILE).read_text(encoding="utf-8"))
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in noted.items()}
    except FileNotFoundError:
        yield DIGESTS_FILE, f"{DIGESTS_FILE} is missing"
        return
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        yield DIGESTS_FILE, f"{DIGESTS_FILE} is damaged"
        return
    if not expected:
        yield DIGESTS_FILE, f"{DIGESTS_FILE} lists no files"
        return
    with thread_pool(_THREADS) as pool:
        found = pool.map(lambda name: _difference(directory, name, *expected[name], is_known), expected)
        yield from ((name, damage) for name, damage in zip(expected, found, strict=True) if damage)


def sha256_of(path: Path) -> str:
    """Return the digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flushed_entry(path: Path) -> dict[str, Any]:
    flush(path)
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _difference(directory: Path, name: str, size: int, digest: str, is_known: Callable[[Path, str], bool]) -> str:
    path = directory / name
    try:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts or not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found:,} bytes, but {size:,} were written"
        if is_known(path, digest):
            return ""
        same = sha256_of(path) == digest
    except (OSError, ValueError) as error:
        return f"{name} cannot be read ({error})"
    return "" if same else f"the content of {name} has changed"
