"""Write files and directories atomically, explain disk errors, and read JSON objects."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from longlora.errors import CheckpointError, ConfigError, LongLoRAError, ResourceError
from longlora.support.digests import flush, seal


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that contains a JSON object.

    Raises:
        CheckpointError: it is missing or damaged, or contains something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must contain a JSON object, found {type(values).__name__}")
    return values


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically: readers see either the old content or the new."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


_REMEDIES = {
    errno.ENOSPC: "make room on that disk, or choose another disk",
    errno.EDQUOT: "make room within your quota, or choose another disk",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose another disk",
    errno.EROFS: "choose a writable location",
    errno.EACCES: "choose a location that you have access to, or change its permissions",
    errno.EPERM: "choose a location that you have access to, or change its permissions",
    errno.ENOTDIR: "a part of that path is a file; choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "it existed, or should have; do not move or delete it during the run",
    errno.EMFILE: "raise the number of files that a process may open (ulimit -n)",
}
# Messages of libraries that write files themselves and do not raise an OSError.
_SYSTEM_ERROR = re.compile(r"os error (\d+)")
_CUT_SHORT = re.compile(r"PytorchStreamWriter failed|inline_container|unexpected pos|file write failed")


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Convert disk errors within the block to an `OSError` with a file name: its own, or `path`.

    safetensors and torch write files themselves, and raise their own exceptions.
    """
    try:
        yield
    except LongLoRAError:
        raise
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        if number := _system_error(str(error)):
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _system_error(message: str) -> int | None:
    if found := _SYSTEM_ERROR.search(message):
        return int(found[1])
    for number in (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EDQUOT):
        if os.strerror(number) in message:
            return number
    return errno.ENOSPC if _CUT_SHORT.search(message) else None


def resource_error(error: OSError) -> ResourceError:
    """Return a user error for an `OSError`, with the path, the reason and the remedy."""
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return ResourceError(f"{where}{error.strerror or error}{f'; {remedy}' if remedy else ''}")


def claim(lock: Path, refusal: str) -> AcquireReturnProxy:
    """Take a lock that one process at a time can have, and return what releases it at the end of a `with` block.

    Raises:
        ConfigError: another process has it; the message is `refusal`.
    """
    try:
        return FileLock(lock, timeout=0).acquire()
    except Timeout:
        raise ConfigError(refusal) from None


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write, which replaces `path` when the block succeeds."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with output_to(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_absent(target: Path) -> None:
    """Check that a directory to be written does not exist yet, or is empty.

    Raises:
        CheckpointError: it exists and is not empty, or is a file.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists already; choose another path or delete it")


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder to write into, which becomes `target` when the block succeeds.

    Before that its files are flushed to disk and sealed with `digests.json` (`support/digests.py`): after a power
    failure `target` is complete or absent.

    Raises:
        CheckpointError: `target` exists and is not empty.
    """
    check_absent(target)
    temporary = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        with output_to(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            seal(temporary)
            if target.exists():
                target.rmdir()
            temporary.rename(target)
            flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_partial(target: Path) -> None:
    """Delete temporary folders that `whole_directory` left next to `target` when its process was killed."""
    for leftover in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(leftover)
