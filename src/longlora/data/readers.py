"""Reads documents out of one file, saved data set or hub data set, and keeps count of what could not be read."""

import gzip
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import pyarrow
import pyarrow.parquet
from datasets import DatasetDict, load_dataset, load_from_disk

from longlora.errors import DataError

JSON_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
PARQUET_SUFFIXES = (".parquet",)

# Enough to tell a text from a model or an archive of many gigabytes without reading it whole.
_HEAD_BYTES = 1 << 20
# Rows of a Parquet file held at once: a row may be a whole book.
_PARQUET_ROWS = 64
_NAMES_SHOWN = 5


class UnreadableError(Exception):
    """A file cannot be read for the reason given; whether that ends the run is for the caller to say."""


class MissingColumnError(UnreadableError):
    """A table lacks the column of the text."""


@dataclass
class Skipped:
    """What was left out: the count of each reason and the first few names."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, name: str) -> None:
        """Count one file or row."""
        self.counts[reason] += 1
        if len(self.names[reason]) < _NAMES_SHOWN:
            self.names[reason].append(name)

    def summary(self) -> str:
        """Say each reason with its count and up to five names, the most frequent first."""
        return "; ".join(
            f"{count} {reason}: {', '.join(self.names[reason])}{', …' if count > _NAMES_SHOWN else ''}"
            for reason, count in self.counts.most_common()
        )


def is_table(path: Path) -> bool:
    """Tell whether a file holds rows with columns, by its suffix; any other file is taken for one text."""
    return path.name.lower().endswith(JSON_SUFFIXES + PARQUET_SUFFIXES)


def read_file(path: Path, *, text_column: str, skipped: Skipped) -> Iterator[tuple[str, str]]:
    """Yield `(name, text)` for each document of a file; rows are named `path:number`, counted from 1.

    Raises:
        UnreadableError: the file as a whole is of no use. Single bad rows are added to `skipped` instead.
    """
    try:
        if not path.is_file():
            raise UnreadableError("unreadable (not a regular file)")
        if not is_table(path):
            yield str(path), _read_text(path)
            return
        is_parquet = path.name.lower().endswith(PARQUET_SUFFIXES)
        rows = _parquet_rows(path, text_column) if is_parquet else _json_rows(path, skipped)
        yield from _texts(rows, str(path), text_column, skipped)
    except (EOFError, zlib.error) as error:
        raise UnreadableError("not valid gzip") from error
    except OSError as error:
        raise UnreadableError(f"unreadable ({error.strerror or error})") from error


def read_saved(path: Path, *, text_column: str, split: str, skipped: Skipped) -> Iterator[tuple[str, str]]:
    """Yield `(name, text)` for each row of a directory written by `save_to_disk`.

    Raises:
        UnreadableError: the directory is damaged or lacks the column.
        DataError: it has splits, but not the one asked for.
    """
    try:
        dataset = load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableError(f"unreadable ({_first_line(error)})") from error
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise DataError(f"{path} has no split {split!r}; set data.split to one of: {', '.join(dataset)}")
        dataset = dataset[split]
    if text_column not in dataset.column_names:
        raise _missing_column(text_column, dataset.column_names)
    rows = enumerate(dataset.with_format(None).select_columns([text_column]), start=1)
    yield from _texts(rows, str(path), text_column, skipped)


def read_hub(name: str, *, text_column: str, split: str, skipped: Skipped) -> Iterator[tuple[str, str]]:
    """Yield `(name, text)` for each row of a data set streamed from the hub.

    Raises:
        MissingColumnError: the data set lacks the column.
        DataError: no such data set or split, or the hub cannot be reached; also when the connection is lost halfway.
    """
    yield from _texts(_hub_rows(name, split), name, text_column, skipped)


def _hub_rows(name: str, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    missing = f"source {name!r} does not exist as a path, and "
    try:
        yield from enumerate(load_dataset(name, split=split, streaming=True), start=1)
    except ConnectionError as error:
        raise DataError(
            f"{missing}the hub could not be reached to look for a data set of that name ({_first_line(error)}); "
            "check the path or the connection"
        ) from error
    # Streaming raises whatever its file system, decompressor or table reader does; nothing of ours runs in here.
    except Exception as error:
        raise DataError(
            f"{missing}it cannot be read as a hub data set with split={split!r}: {_first_line(error)}"
        ) from error


def _texts(
    rows: Iterable[tuple[int, dict[str, Any]]], name: str, text_column: str, skipped: Skipped
) -> Iterator[tuple[str, str]]:
    for position, (number, row) in enumerate(rows):
        # The first row speaks for the table; a later one without the column is a row without a text.
        if position == 0 and text_column not in row:
            raise _missing_column(text_column, row)
        text = row.get(text_column)
        if text is None:
            text = ""
        if not isinstance(text, str):
            skipped.add(f"with {type(text).__name__} instead of text in column {text_column!r}", f"{name}:{number}")
        elif _is_unicode(text):
            yield f"{name}:{number}", text
        else:
            skipped.add("not UTF-8 text", f"{name}:{number}")


def _is_unicode(text: str) -> bool:
    """Half a surrogate pair passes as JSON and as a Python string, but no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_text(path: Path) -> str:
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
        if b"\0" in head:
            raise UnreadableError("not UTF-8 text")
        content = head + stream.read()
    if b"\0" in content:
        raise UnreadableError("not UTF-8 text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError("not UTF-8 text") from error
    # The same tokens whatever system the file was written on.
    return text.replace("\r\n", "\n")


def _json_rows(path: Path, skipped: Skipped) -> Iterator[tuple[int, dict[str, Any]]]:
    with _open(path) as stream:
        values = _json_lines(stream) if _holds_json_lines(stream, path) else _json_list(stream)
        for number, value in values:
            if isinstance(value, dict):
                yield number, value
            else:
                skipped.add("not a JSON object", f"{path}:{number}")


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb"))


def _holds_json_lines(stream: IO[bytes], path: Path) -> bool:
    """Look at the first line rather than the suffix: much that is called .json holds one object per line."""
    try:
        return isinstance(json.loads(stream.readline()), dict)
    except ValueError:
        return ".jsonl" in path.name.lower()
    finally:
        stream.seek(0)


def _json_lines(stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def _json_list(stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    try:
        value = json.load(stream)
    except ValueError as error:
        raise UnreadableError("not valid JSON") from error
    yield from enumerate(value if isinstance(value, list) else [value], start=1)


def _parquet_rows(path: Path, text_column: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if text_column not in file.schema_arrow.names:
                raise _missing_column(text_column, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_column]):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise UnreadableError("not valid Parquet") from error


def _missing_column(text_column: str, columns: Iterable[str]) -> MissingColumnError:
    return MissingColumnError(f"no column {text_column!r} (columns: {', '.join(map(str, columns)) or 'none'})")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
