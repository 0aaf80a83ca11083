"""Sources that the tests of reading make, and what is read from them."""

import json
from pathlib import Path
from typing import Any

from longlora.data.sources import read_documents

TEXTS = ["first", "second\nwith a line", "dritte, größer"]
ROWS = [{"id": number, "text": text} for number, text in enumerate(TEXTS)]


def texts_of(source: Any, **options: Any) -> list[str]:
    return [text for _, text in read_documents(source, **options)]


def write_folder(folder: Path, contents: dict[str, str | bytes]) -> str:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(folder)


def json_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
