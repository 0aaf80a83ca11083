"""A data set that every machine with Python has: the source code of its standard library.

The tiny model is trained on it, and the demo extends and evaluates on it. The rule below defines the data set: the
split depends only on a file's path below the library's folder, so it is the same in every Python version.
"""

import sysconfig
import zlib
from pathlib import Path
from typing import Literal

from longlora.errors import DataError

Split = Literal["train", "validation"]

# Not installed everywhere (Debian splits some off), not the library's own code, or tables rather than text.
_EXCLUDED_FOLDERS = frozenset(
    "__pycache__ site-packages dist-packages test tests idlelib lib2to3 tkinter turtledemo distutils encodings "
    "pydoc_data ensurepip".split()
)
_HELD_OUT_ONE_IN = 16


def standard_library_files(split: Split) -> list[Path]:
    """List the standard library's source files of one split, sorted by path.

    One file in 16 is held out, chosen by the CRC-32 of its relative path.

    Raises:
        DataError: this Python has no source files of its standard library.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    chosen = [
        path
        for path in sorted(root.rglob("*.py"))
        if _EXCLUDED_FOLDERS.isdisjoint(path.relative_to(root).parts[:-1])
        and (_is_held_out(path.relative_to(root).as_posix()) == (split == "validation"))
        and path.stat().st_size > 0
    ]
    if not chosen:
        raise DataError(
            f"no source files of the standard library under {root}: this Python was installed without them; "
            "use one that has them, or train on your own texts"
        )
    return chosen


def _is_held_out(relative_path: str) -> bool:
    return zlib.crc32(relative_path.encode()) % _HELD_OUT_ONE_IN == 0
