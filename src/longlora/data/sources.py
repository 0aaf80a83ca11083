"""Turn a user's data sources into a stream of documents or conversations, with an identity."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic

from longlora.data.conversations import CONVERSATIONS, Conversation
from longlora.data.row_readers import (
    Item,
    ItemKind,
    MissingColumnError,
    Skipped,
    UnreadableError,
    is_table,
    read_part,
    text_kind,
)
from longlora.errors import DataError
from longlora.support.locate import Part, files_below, locate

logger = logging.getLogger("longlora")


@dataclass(frozen=True, kw_only=True)
class Source(Generic[Item]):
    """Items in a fixed order as `(name, item)`, read again by every iteration.

    Files are opened only then: an iteration skips what it cannot read, reports it in one warning at the end, and raises
    `DataError` if nothing is left.
    """

    identity: str  # digest of what determines the items: paths, sizes, times, hub name, split, column, limit
    num_documents: int | None  # maximum number of items, if known before reading
    read: Callable[[], Iterator[tuple[str, Item]]]

    def __iter__(self) -> Iterator[tuple[str, Item]]:
        """Read the items from the start."""
        return self.read()


DocumentSource = Source[str]
ConversationSource = Source[Conversation]


def read_documents(
    source: str | Sequence[str], *, text_column: str = "text", split: str = "train", max_documents: int | None = None
) -> DocumentSource:
    """Find the documents of one or more sources, in the order given; folders and globs are sorted by path.

    A source is a text file (anything that decodes as UTF-8 and contains no NUL), a folder (with subfolders, without
    hidden files), a glob, a JSON, JSON-lines or Parquet file, a directory written by `datasets.save_to_disk`, or
    otherwise the name of a hub data set, which is streamed. `split` applies to the last two. A hub data set that
    changes under the same name keeps its identity.

    Raises:
        DataError: a source does not exist, or contains no file. Errors inside files are raised while reading.
    """
    return find_items(source, text_kind(text_column), split, max_documents, identity=[text_column])


def read_conversations(
    source: str | Sequence[str], *, split: str = "train", max_documents: int | None = None
) -> ConversationSource:
    """Find the conversations of one or more sources: tables as for `read_documents`, in the forms of `Conversation`.

    Raises:
        DataError: a source does not exist, or contains no file. Errors inside files are raised while reading.
    """
    return find_items(source, CONVERSATIONS, split, max_documents, identity=["conversations"])


def find_items(
    source: str | Sequence[str], kind: ItemKind[Item], split: str, max_items: int | None, identity: list[Any]
) -> Source[Item]:
    """Find items of any kind; `identity` is what determines them besides their sources.

    Raises:
        DataError: a source does not exist, or contains no file.
    """
    names = [source] if isinstance(source, str) else list(source)
    parts = [part for name in names for part in locate(name)]
    if not parts:
        raise DataError("at least one data source must be given, found an empty list; set data.source")
    identity = [*identity, split, max_items, [_identify(part) for part in parts]]
    is_countable = all(part.kind == "file" and not is_table(Path(part.location)) for part in parts)
    return Source(
        identity=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        num_documents=min(len(parts), max_items or len(parts)) if is_countable else max_items,
        read=partial(_read_parts, parts, ", ".join(names), kind, split, max_items),
    )


def _identify(part: Part) -> list[object]:
    if part.kind == "hub":
        return ["hub", part.location]
    files = files_below(part.location) if part.kind == "saved" else [part.location]
    return [part.kind, *(_stamp(Path(file)) for file in files)]


def _stamp(file: Path) -> tuple[str, int, int]:
    try:
        status = file.stat()
    except OSError:
        return os.path.abspath(file), -1, -1
    return os.path.abspath(file), status.st_size, status.st_mtime_ns


def _read_parts(
    parts: list[Part], source_name: str, kind: ItemKind[Item], split: str, max_items: int | None
) -> Iterator[tuple[str, Item]]:
    skipped = Skipped()
    items = (item for part in parts for item in read_or_skip(part, kind, split, skipped))
    num_read = 0
    for item in islice(items, max_items):
        num_read += 1
        yield item
    if num_read == 0:
        reasons = skipped.summary() or "it holds no rows"
        raise DataError(f"no readable {kind.name} in {source_name}: {reasons}; {kind.remedy}")
    if skipped:
        logger.warning("skipped %d files or rows: %s", len(skipped), skipped.summary())


def read_or_skip(part: Part, kind: ItemKind[Item], split: str, skipped: Skipped) -> Iterator[tuple[str, Item]]:
    """Yield the items of one of several files or data sets; if it cannot be read, it is added to `skipped`.

    Raises:
        DataError: a table that the user named lacks the columns; or as `read_part`.
    """
    try:
        yield from read_part(part, kind, split, skipped)
    except MissingColumnError as error:
        # A folder of texts may well contain a settings.json, but a table that the user named must be the intended one.
        if part.is_named:
            raise DataError(f"{part.location} has {error}; {kind.column_remedy}") from error
        skipped.findings[f"with {error}"].add(part.location)
    except UnreadableError as error:
        skipped.findings[str(error)].add(part.location)
