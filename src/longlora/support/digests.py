"""Whether the files of a directory are still as they were written: their names, sizes and digests in `digests.json`.

The file is written last, when all others have reached the disk. A directory that has one was thus written to its end;
one whose files differ from it was damaged, or changed by hand, since then.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

DIGESTS_FILE = "digests.json"
_FREE = {DIGESTS_FILE, "README.md"}  # a card is for people, who may add to it
_THREADS = 8  # hashlib lets go of the interpreter; a large model lies in many files


def seal(directory: Path) -> None:
    """Note what each file of a directory holds, once all of them are on the disk; each is read once.

    `benchmarks/digests.py` measures what that takes.
    """
    digests_file = directory / DIGESTS_FILE
    digests_file.unlink(missing_ok=True)
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    with ThreadPoolExecutor(_THREADS) as pool:
        entries = list(pool.map(_flushed_entry, paths))
    names = [path.relative_to(directory).as_posix() for path in paths]
    noted = {name: entry for name, entry in zip(names, entries, strict=True) if name not in _FREE}
    digests_file.write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")
    for path in (digests_file, *(path for path in directory.rglob("*") if path.is_dir()), directory):
        flush(path)


def is_sealed(directory: Path) -> bool:
    """Whether a directory was written to its end."""
    return (directory / DIGESTS_FILE).is_file()


def find_damage(directory: Path) -> str:
    """Say what differs from what `seal` noted; empty where nothing does. Files that came later do not count."""
    return next((damage for _, damage in differences(directory)), "")


def differences(
    directory: Path, is_known: Callable[[Path, str], bool] = lambda path, digest: False
) -> Iterator[tuple[str, str]]:
    """Yield each file that differs from what `seal` noted, with how it does, in one sentence.

    Args:
        directory: that was sealed.
        is_known: whether a file is known to have a digest, so that it need not be read.
    """
    try:
        noted = json.loads((directory / DIGESTS_FILE).read_text(encoding="utf-8"))
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in noted.items()}
    except FileNotFoundError:
        yield DIGESTS_FILE, f"{DIGESTS_FILE} is missing"
        return
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        yield DIGESTS_FILE, f"{DIGESTS_FILE} is damaged"
        return
    if not expected:
        yield DIGESTS_FILE, f"{DIGESTS_FILE} names no file"
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _difference(directory, name, *expected[name], is_known), expected)
        yield from ((name, damage) for name, damage in zip(expected, found, strict=True) if damage)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flushed_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest}


def _difference(directory: Path, name: str, size: int, digest: str, is_known: Callable[[Path, str], bool]) -> str:
    path = directory / name
    try:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts or not path.is_file():
            return f"{name} is missing"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found:,} bytes and was written with {size:,}"
        if is_known(path, digest):
            return ""
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == digest
    except (OSError, ValueError) as error:
        return f"{name} cannot be read ({error})"
    return "" if same else f"the content of {name} has changed"
