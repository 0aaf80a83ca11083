"""Files and directories that are never half there, and what JSON files hold."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from longlora.errors import CheckpointError, LongLoRAError, ResourceError
from longlora.support.digests import flush, seal


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        CheckpointError: it is missing or damaged, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object, but {type(values).__name__}")
    return values


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


_REMEDIES = {
    errno.ENOSPC: "make room on that disk, or choose a place on another",
    errno.EDQUOT: "make room within your quota, or choose a place elsewhere",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or choose a place on another disk",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "choose a place that you may use, or change its permissions",
    errno.EPERM: "choose a place that you may use, or change its permissions",
    errno.ENOTDIR: "a part of that path is a file; choose another",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "it was there, or should have been; do not move or delete it meanwhile",
    errno.EMFILE: "raise the number of files that a process may open (ulimit -n)",
}
# What libraries that write by themselves say of a disk, instead of raising Python's OSError.
_SYSTEM_ERROR = re.compile(r"os error (\d+)")
_CUT_SHORT = re.compile(r"PytorchStreamWriter failed|inline_container|unexpected pos|file write failed")


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Make sure that what fails because of a disk within a block is an `OSError` that names a path: `path`, or its own.

    safetensors and torch write by themselves, and raise errors of their own.
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
    """What a system's refusal means to a user: the path, the reason, the remedy."""
    where = f"{error.filename}: " if error.filename is not None else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return ResourceError(f"{where}{error.strerror or error}{f'; {remedy}' if remedy else ''}")


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give a temporary file to write, and put it in the place of `path` once the block has ended well."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with output_to(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_absent(target: Path) -> None:
    """Make sure that nothing stands where a directory is to be written; an empty one may.

    Raises:
        CheckpointError: something does.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists already; choose another place or delete it")


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Give a temporary folder to write into, and put it in `target`'s place once the block has ended well.

    Its files have reached the disk by then, and `digests.json` says what they hold (`support/digests.py`): after a
    power cut `target` is whole or absent.

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
    """Delete what `whole_directory` left beside `target` when its process was killed."""
    for leftover in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(leftover)
