"""Stands in for files that a library crashes or fails on. A module of its own, since every process loads it."""

import os
from pathlib import Path
from typing import Any

from longlora.corpus import shelf
from longlora.corpus.extract import ExtractSettings

_extract = shelf._extract


def die_of_b(path: Path, settings: ExtractSettings) -> Any:
    if path.name == "b.md":
        os._exit(1)
    if path.name == "unexpected.txt":
        raise LookupError("of a glyph\nin its font")
    return _extract(path, settings)
