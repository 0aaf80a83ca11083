"""Resolve the name of a data source to files or a data set, without heavy imports."""

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longlora.errors import DataError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# A dot and a letter: `notes.txt` is a missing file, but `owner/corpus-v1.2` may be a data set.
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,7}")


@dataclass(frozen=True)
class Part:
    """A file, a directory from `datasets.save_to_disk`, or a hub data set."""

    kind: Literal["file", "saved", "hub"]
    location: str
    is_named: bool
    """Whether the user named it, rather than a folder or glob that includes it."""


def locate(name: str) -> list[Part]:
    """Find the files of one source, sorted by path, without opening them.

    Raises:
        DataError: the source does not exist, or has no files.
    """
    path = os.path.expanduser(name)
    if os.path.isdir(path) and name.strip():
        if _is_saved_dataset(path):
            return [Part("saved", path, True)]
        return [Part("file", file, False) for file in files_below(path)]
    if os.path.exists(path):
        return [Part("file", path, True)]
    if any(character in name for character in "*?["):
        files = sorted(Path(match) for match in glob.glob(path, recursive=True) if not os.path.isdir(match))
        if not files:
            raise DataError(f"the glob {name!r} must match at least one file, found none; '**' enters subfolders")
        return [Part("file", str(file), False) for file in files]
    if _HUB_NAME.fullmatch(name) and not _FILE_SUFFIX.fullmatch(Path(name).suffix):
        return [Part("hub", name, True)]
    raise DataError(
        f"source {name!r} does not exist; data.source must be a text file, a folder, a glob, a JSON, JSONL or Parquet "
        "file, a saved `datasets` directory, or the name of a hub data set"
    )


def _is_saved_dataset(folder: str) -> bool:
    is_split = os.path.isfile(os.path.join(folder, "dataset_dict.json"))
    return is_split or all(os.path.isfile(os.path.join(folder, name)) for name in ("dataset_info.json", "state.json"))


def files_below(folder: str) -> list[str]:
    """List the files in a folder and its subfolders, except hidden ones.

    Raises:
        DataError: there are none, or a folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"folder {error.filename!r} cannot be listed ({error.strerror}); permit it or move it away")

    files = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    if not files:
        raise DataError(f"folder {folder!r} must hold at least one text file, found none (hidden files are ignored)")
    return [str(file) for file in sorted(files)]
