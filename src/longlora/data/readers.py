"""Reads items out of one file, saved data set or hub data set, and keeps count of what could not be read."""

import gzip
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, cast

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
    """A table lacks the columns that are asked for."""


class UnusableError(Exception):
    """A row holds nothing usable, for the reason given; other rows may."""


Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)


class ItemKind(Protocol[Item_co]):
    """What is read: how a row of a table, or a whole file, becomes an item."""

    @property
    def name(self) -> str:
        """What one item is called."""

    @property
    def columns(self) -> Sequence[str] | None:
        """Columns to read where a format lets one choose; None for all."""

    @property
    def remedy(self) -> str:
        """What to do where nothing usable is found."""

    @property
    def column_remedy(self) -> str:
        """What to do where a table lacks the columns."""

    def check(self, columns: Iterable[str]) -> None:
        """Look at a table's columns; raises `MissingColumnError`."""

    def of_row(self, row: Mapping[str, Any]) -> Item_co:
        """Make an item of a row; raises `UnusableError`."""

    def of_text(self, text: str) -> Item_co:
        """Make an item of a file that is no table; raises `UnusableError` or `UnreadableError`."""


@dataclass(frozen=True)
class TextKind:
    """Texts: a column of a table, or a whole file."""

    column: str = "text"
    name: str = "text"
    remedy: str = (
        "data.source needs at least one text in UTF-8, data.text_column names the column of a table that holds it"
    )
    column_remedy: str = "set data.text_column to one of them"

    @property
    def columns(self) -> Sequence[str]:
        """The column of the text."""
        return [self.column]

    def check(self, columns: Iterable[str]) -> None:
        """See that the column is there."""
        if self.column not in columns:
            raise missing_columns(f"no column {self.column!r}", columns)

    def of_row(self, row: Mapping[str, Any]) -> str:
        """Take the text out of its column."""
        text = row.get(self.column)
        if text is not None and not isinstance(text, str):
            raise UnusableError(f"with {type(text).__name__} instead of text in column {self.column!r}")
        return self.of_text(text or "")

    def of_text(self, text: str) -> str:
        """See that a tokenizer can take it."""
        if not text.strip():
            raise UnusableError("empty")
        if not is_unicode(text):
            raise UnusableError("not UTF-8 text")
        return text


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


def read_file(path: Path, kind: ItemKind[Item], skipped: Skipped) -> Iterator[tuple[str, Item]]:
    """Yield `(name, item)` for each item of a file; rows are named `path:number`, counted from 1.

    Raises:
        UnreadableError: the file as a whole is of no use. Single bad rows are added to `skipped` instead.
    """
    try:
        if not path.is_file():
            raise UnreadableError("unreadable (not a regular file)")
        if not is_table(path):
            try:
                yield str(path), kind.of_text(_read_text(path))
            except UnusableError as error:
                skipped.add(str(error), str(path))
            return
        is_parquet = path.name.lower().endswith(PARQUET_SUFFIXES)
        rows = _parquet_rows(path, kind) if is_parquet else _json_rows(path, skipped)
        yield from _items(rows, str(path), kind, skipped)
    except (EOFError, zlib.error) as error:
        raise UnreadableError("not valid gzip") from error
    except OSError as error:
        raise UnreadableError(f"unreadable ({error.strerror or error})") from error


def read_saved(path: Path, kind: ItemKind[Item], split: str, skipped: Skipped) -> Iterator[tuple[str, Item]]:
    """Yield `(name, item)` for each row of a directory written by `save_to_disk`.

    Raises:
        UnreadableError: the directory is damaged or lacks the columns.
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
    kind.check(dataset.column_names)
    columns = dataset.column_names if kind.columns is None else list(kind.columns)
    rows = enumerate(dataset.with_format(None).select_columns(columns), start=1)
    yield from _items(rows, str(path), kind, skipped)


def read_hub(name: str, kind: ItemKind[Item], split: str, skipped: Skipped) -> Iterator[tuple[str, Item]]:
    """Yield `(name, item)` for each row of a data set streamed from the hub.

    Raises:
        MissingColumnError: the data set lacks the columns.
        DataError: no such data set or split, or the hub cannot be reached; also when the connection is lost halfway.
    """
    yield from _items(_hub_rows(name, split), name, kind, skipped)


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


def missing_columns(what: str, columns: Iterable[str]) -> MissingColumnError:
    """Make the error for a table without what is needed, naming what it has."""
    return MissingColumnError(f"{what} (columns: {', '.join(map(str, columns)) or 'none'})")


def is_unicode(text: str) -> bool:
    """Tell whether a string can be written as UTF-8.

    Half a surrogate pair passes as JSON and as a Python string, but no tokenizer takes it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _items(
    rows: Iterable[tuple[int, dict[str, Any]]], name: str, kind: ItemKind[Item], skipped: Skipped
) -> Iterator[tuple[str, Item]]:
    for position, (number, row) in enumerate(rows):
        # The first row speaks for the table; a later one without the columns is a row without an item.
        if position == 0:
            kind.check(row)
        try:
            item = kind.of_row(row)
        except UnusableError as error:
            skipped.add(str(error), f"{name}:{number}")
            continue
        yield f"{name}:{number}", item


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


def _parquet_rows(path: Path, kind: ItemKind[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            kind.check(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=kind.columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise UnreadableError("not valid Parquet") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
