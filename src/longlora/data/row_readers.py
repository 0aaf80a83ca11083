"""Read items from one file, saved data set or hub data set, and count what could not be read.

Files are not read with `load_dataset`, which stops at the first bad row and copies what it reads into a cache.
"""

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, cast

import pyarrow
import pyarrow.parquet
from datasets import DatasetDict, load_dataset, load_from_disk

from longlora.errors import DataError, first_line
from longlora.support.locate import Part

_PARQUET = ".parquet"
_TABLES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", _PARQUET)

# Enough to tell a text from a model or archive of many gigabytes without reading all of it.
_HEAD_BYTES = 1 << 20
# A line of a compressed file may unpack to more than fits in memory; so may a list, which must be read as a whole.
# Tokenizing a text takes many times its size, so no text is longer than a line.
_MOST_LINE_BYTES = 1 << 28
_MOST_LIST_BYTES = 1 << 31
_TOO_LONG_FOR_ONE = f"longer than {_MOST_LINE_BYTES >> 20} MiB"
# Rows of a Parquet file in memory at once: a row may be a whole book.
_PARQUET_ROWS = 64
NAMES_SHOWN = 5  # of each finding
_TOO_LONG = object()  # stands in for a line's value


class UnreadableError(Exception):
    """A file cannot be read, for the reason given; the caller decides whether that ends the run."""


class MissingColumnError(UnreadableError):
    """A table lacks the requested columns."""


class UnusableError(Exception):
    """A row contains nothing usable, for the reason given; other rows may."""


Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class ItemKind(Generic[Item]):
    """A kind of item: how to read it from a row of a table, or from a whole file."""

    name: str
    remedy: str  # if nothing usable is found
    column_remedy: str  # if a table lacks the columns
    missing: Callable[[set[str]], str]  # what a table with these columns lacks; empty if nothing
    of_row: Callable[[Mapping[str, Any]], Item]  # raises `UnusableError`
    of_text: Callable[[str], Item]  # for a file that is not a table; raises `UnusableError` or `UnreadableError`
    columns: list[str] | None = None  # to read, in formats that allow a choice; None for all

    def check(self, columns: Iterable[str]) -> None:
        """Check that a table has the columns.

        Raises:
            MissingColumnError: it does not.
        """
        names = list(columns)
        if missing := self.missing(set(names)):
            raise MissingColumnError(f"no {missing} (columns: {', '.join(map(str, names)) or 'none'})")

    def into(self, make: Callable[[Item, Mapping[str, Any]], Made]) -> "ItemKind[Made]":
        """Return the kind of what is made from these items and their rows; a whole file has an empty row."""
        return replace(
            cast(ItemKind[Any], self),
            of_row=lambda row: make(self.of_row(row), row),
            of_text=lambda text: make(self.of_text(text), {}),
        )


def text_kind(column: str = "text") -> ItemKind[str]:
    """Return the kind of items that are texts: a column of a table, or a whole file."""
    return ItemKind(
        name="text",
        remedy="data.source needs at least one text in UTF-8; data.text_column names a table's column of texts",
        column_remedy="set data.text_column to one of them",
        missing=lambda columns: "" if column in columns else f"column {column!r}",
        of_row=lambda row: _usable(text_of(row, column)),
        of_text=_usable,
        columns=[column],
    )


def text_of(row: Mapping[str, Any], column: str) -> str:
    """Return the text in a column; empty if there is none.

    Raises:
        UnusableError: the value is not text.
    """
    text = row.get(column)
    if text is not None and not isinstance(text, str):
        raise UnusableError(f"with {type(text).__name__} instead of text in column {column!r}")
    return text or ""


def _usable(text: str) -> str:
    if not text.strip():
        raise UnusableError("empty")
    if len(text) > _MOST_LINE_BYTES:
        raise UnusableError(_TOO_LONG_FOR_ONE)
    check_unicode(text)
    return text


def check_unicode(text: str) -> None:
    """Check that a string can be encoded as UTF-8; half a surrogate pair is valid JSON, but no tokenizer accepts it.

    Raises:
        UnusableError: it cannot.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnusableError("not UTF-8 text") from error


@dataclass
class Finding:
    """A kind of problem: how many rows or files have it, and the first few of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count a row or file."""
        self.count += 1
        if len(self.examples) < NAMES_SHOWN:
            self.examples.append(example)


class Skipped:
    """What was skipped, by reason."""

    def __init__(self) -> None:
        self.findings: defaultdict[str, Finding] = defaultdict(Finding)

    def __len__(self) -> int:
        """Return the number of skipped files and rows."""
        return sum(finding.count for finding in self.findings.values())

    def summary(self) -> str:
        """Return each reason with its count and up to five names, most frequent first."""
        return "; ".join(
            f"{found.count} {reason}: {', '.join(found.examples)}{', …' if found.count > NAMES_SHOWN else ''}"
            for reason, found in sorted(self.findings.items(), key=lambda item: -item[1].count)
        )


def is_table(path: Path) -> bool:
    """Return whether a file contains rows with columns, judging by its suffix; any other file counts as one text."""
    return path.name.lower().endswith(_TABLES)


def read_part(part: Part, kind: ItemKind[Item], split: str, skipped: Skipped) -> Iterator[tuple[str, Item]]:
    """Yield `(name, item)` for each item of a file or data set; rows are named `location:number`, counted from 1.

    `split` applies to data sets, those of the hub being streamed. Single bad rows are added to `skipped`.

    Raises:
        UnreadableError: the whole file or data set is unusable, or lacks the columns.
        DataError: no such data set or split, or the hub cannot be reached or the connection is lost halfway.
    """
    if part.kind != "file":
        name = part.location
        rows = _saved_rows(name, split, kind) if part.kind == "saved" else _hub_rows(name, split)
        yield from _items(enumerate(rows, start=1), name, kind, skipped)
        return
    path = Path(part.location)
    try:
        if not path.is_file():
            raise UnreadableError("unreadable (not a regular file)")
        if is_table(path):
            numbered = _parquet_rows(path, kind) if path.name.lower().endswith(_PARQUET) else _json_rows(path, skipped)
            yield from _items(numbered, str(path), kind, skipped)
            return
        try:
            yield str(path), kind.of_text(_read_text(path))
        except UnusableError as error:
            skipped.findings[str(error)].add(str(path))
    except (EOFError, zlib.error) as error:
        raise UnreadableError("not valid gzip") from error
    except OSError as error:
        raise UnreadableError(f"unreadable ({error.strerror or error})") from error


def _saved_rows(path: str, split: str, kind: ItemKind[Any]) -> Iterable[dict[str, Any]]:
    try:
        dataset = load_from_disk(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnreadableError(f"unreadable ({first_line(error)})") from error
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise DataError(f"{path} has no split {split!r}; set data.split to one of: {', '.join(dataset)}")
        dataset = dataset[split]
    kind.check(dataset.column_names)
    return dataset.with_format(None).select_columns(kind.columns or dataset.column_names)


def _hub_rows(name: str, split: str) -> Iterator[dict[str, Any]]:
    try:
        yield from load_dataset(name, split=split, streaming=True)
    # Streaming raises whatever its file system, decompressor or table reader raises; none of our code runs here.
    except Exception as error:
        said = f"it cannot be read as a hub data set with split={split!r}: {first_line(error)}"
        if isinstance(error, ConnectionError):
            said = (
                f"the hub could not be reached to look for a data set of that name ({first_line(error)}); "
                "check the path or the connection"
            )
        raise DataError(f"source {name!r} does not exist as a path, and {said}") from error


def _items(
    rows: Iterable[tuple[int, dict[str, Any]]], name: str, kind: ItemKind[Item], skipped: Skipped
) -> Iterator[tuple[str, Item]]:
    for position, (number, row) in enumerate(rows):
        # The first row stands for the table; a later one without the columns is just unusable.
        if position == 0:
            kind.check(row)
        try:
            item = kind.of_row(row)
        except UnusableError as error:
            skipped.findings[str(error)].add(f"{name}:{number}")
        else:
            yield f"{name}:{number}", item


def _read_text(path: Path) -> str:
    with path.open("rb") as stream:
        content = stream.read(_HEAD_BYTES)
        if b"\0" not in content:
            content += stream.read(_MOST_LINE_BYTES)
    if len(content) > _MOST_LINE_BYTES:
        raise UnusableError(_TOO_LONG_FOR_ONE)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError("not UTF-8 text") from error
    if "\0" in text:
        raise UnreadableError("not UTF-8 text")
    return text.replace("\r\n", "\n")  # the same tokens, whichever system wrote the file


def _json_rows(path: Path, skipped: Skipped) -> Iterator[tuple[int, dict[str, Any]]]:
    with cast(IO[bytes], gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")) as stream:
        for number, value in _json_lines(stream) if _holds_json_lines(stream, path) else _json_list(stream):
            if isinstance(value, dict):
                yield number, value
            else:
                reason = _TOO_LONG_FOR_ONE if value is _TOO_LONG else "not a JSON object"
                skipped.findings[reason].add(f"{path}:{number}")


def _holds_json_lines(stream: IO[bytes], path: Path) -> bool:
    """Look at the first line rather than the suffix: many .json files contain one object per line."""
    try:
        return isinstance(json.loads(stream.readline(_MOST_LINE_BYTES)), dict)
    except (ValueError, RecursionError):
        return ".jsonl" in path.name.lower()
    finally:
        stream.seek(0)


def _json_lines(stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    number = 0
    while line := stream.readline(_MOST_LINE_BYTES):
        number += 1
        if len(line) == _MOST_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(_HEAD_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, _TOO_LONG
        elif line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, None


def _json_list(stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    content = stream.read(_MOST_LIST_BYTES)
    if len(content) == _MOST_LIST_BYTES:
        raise UnreadableError(f"JSON of more than {_MOST_LIST_BYTES >> 30} GiB in one value; write it as JSON lines")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnreadableError("not valid JSON") from error
    yield from enumerate(value if isinstance(value, list) else [value], start=1)


def _parquet_rows(path: Path, kind: ItemKind[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            kind.check(file.schema_arrow.names)
            batches = file.iter_batches(batch_size=_PARQUET_ROWS, columns=kind.columns)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UnreadableError("not valid Parquet") from error
