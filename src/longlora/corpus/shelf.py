"""Extract texts from many files into one JSONL, in several processes, resuming where an earlier run stopped.

`corpus.jsonl` contains a record for each text, in the order of the files; `settings.json` the extraction settings;
`skipped.json` the files without a record, with the reason. A record is appended with one write that ends in a newline;
a run that is killed while writing leaves an incomplete line, which the next run removes before it resumes.
"""

import json
import os
import resource
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from longlora.corpus.extract import ExtractSettings, Record, extract
from longlora.corpus.near_duplicates import NearDuplicates, signature
from longlora.errors import DataError
from longlora.support.apart import call_apart
from longlora.support.choices import NearDuplicateRule
from longlora.support.digests import sha256_of
from longlora.support.files import claim, write_atomically
from longlora.support.journal import check_same_settings, json_line, read_json_lines
from longlora.support.machine import require_package, thread_pool
from longlora.support.progress import progress_bar

RECORDS_FILE = "corpus.jsonl"
SETTINGS_FILE = "settings.json"
SKIPPED_FILE = "skipped.json"
TEXT_FOLDER = "texts"

# Limits for one file. A thousand pages take a few minutes.
_MOST_SECONDS = 3600.0
_MOST_MEMORY_BYTES = 8 << 30
_LIBRARIES = ("pypdfium2", "bs4", "lxml.etree", "trafilatura")
_DOCLING = ("docling.document_converter",)


@dataclass
class ShelfResult:
    """The outcome for all files."""

    num_written: int = 0
    num_done_before: int = 0
    num_words: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # number of books and papers written
    skipped: dict[str, str] = field(default_factory=dict)  # files without a record, with the reason
    marked: dict[str, str] = field(default_factory=dict)  # files marked as near duplicates, with the earlier file


def read_shelf(
    files: Sequence[Path],
    folder: Path,
    *,
    settings: ExtractSettings | None = None,
    near_duplicates: NearDuplicateRule = "drop",
    processes: int = 1,
    write_texts: bool = False,
) -> ShelfResult:
    """Extract texts from files into `folder`; files whose content already has a record there are not read again.

    Raises:
        ConfigError: the folder contains texts extracted with other settings, another process is writing to it, or the
            requested engine is not installed.
        DataError: the folder contains something other than a valid corpus.
    """
    settings = settings or ExtractSettings()
    if settings.engine == "docling":
        require_package("docling", wanted_by="--engine docling")
    folder.mkdir(parents=True, exist_ok=True)
    with claim(folder / ".lock", f"another process is writing to {folder}; wait for it, or choose another folder"):
        _keep_settings(folder, asdict(settings) | {"near_duplicates": near_duplicates})
        shelf = _Shelf(folder, near_duplicates, write_texts=write_texts)
        waiting = [path for path in files if shelf.is_new(path)]
        done = len(files) - len(waiting)
        with (
            progress_bar("Reading", total=len(files), completed=done) as advance,
            closing(_extracted(waiting, settings, processes)) as read,
        ):
            for path, found in read:
                shelf.put(path, found)
                advance(1, path.name)
        write_atomically(folder / SKIPPED_FILE, json.dumps(shelf.result.skipped, ensure_ascii=False, indent=2) + "\n")
        return shelf.result


class _Shelf:
    """The corpus on disk: appends records, and detects duplicates."""

    def __init__(self, folder: Path, rule: NearDuplicateRule, *, write_texts: bool) -> None:
        self.result = ShelfResult()
        self._folder, self._rule, self._write_texts = folder, rule, write_texts
        known = read_json_lines(folder / RECORDS_FILE, lambda line: Record(**line))
        self._files = {record.sha256: record.file for record in known}
        self._near = NearDuplicates()
        if rule != "keep":
            for record in known:
                if record.near_duplicate_of is None:
                    self._near.add(record.file, signature(record.text))

    def is_new(self, path: Path) -> bool:
        """Return whether a file's content has no record yet, and is not that of an earlier file."""
        try:
            digest = sha256_of(path)
        except OSError:
            return True  # reading it reports why
        if digest not in self._files:
            self._files[digest] = str(path)
            return True
        if (earlier := self._files[digest]) == str(path):
            self.result.num_done_before += 1
        else:
            self.result.skipped[str(path)] = f"the same file as {earlier}"
        return False

    def put(self, path: Path, found: "_Found | str") -> None:
        """Append what was found, unless it duplicates an earlier record; a string is the reason that nothing was."""
        if isinstance(found, str):
            self.result.skipped[str(path)] = found
            return
        record, sketch = found
        match = self._near.find(sketch) if self._rule != "keep" else None
        if match is None:
            if self._rule != "keep":
                self._near.add(record.file, sketch)
        elif self._rule == "drop":
            reason = f"nearly the same text as {match[0]} (about {match[1]:.0%} of its runs of five words)"
            self.result.skipped[str(path)] = reason
            return
        else:
            record = replace(record, near_duplicate_of=str(match[0]))
            self.result.marked[str(path)] = str(match[0])
        self._append(record)

    def _append(self, record: Record) -> None:
        if self._write_texts:  # before the record: without one, the file is read again
            texts = self._folder / TEXT_FOLDER
            texts.mkdir(exist_ok=True)
            write_atomically(texts / f"{Path(record.file).stem}-{record.sha256[:8]}.txt", record.text + "\n")
        with (self._folder / RECORDS_FILE).open("ab") as file:
            given = {name: value for name, value in asdict(record).items() if value is not None}
            file.write(json_line(given).encode("utf-8", errors="replace"))
            file.flush()
            os.fsync(file.fileno())
        self.result.num_written += 1
        self.result.num_words += len(record.text.split())
        self.result.kinds[record.document_kind] += 1


_Found = tuple[Record, Any]  # with the record's MinHash, computed in the same process


def _extract(path: Path, settings: ExtractSettings) -> _Found:
    record = extract(path, settings)
    return record, signature(record.text)


def _extracted(
    files: Sequence[Path], settings: ExtractSettings, processes: int
) -> Generator[tuple[Path, _Found | str]]:
    """Yield files with their results in order, reading several at once."""
    stop = Event()
    with thread_pool(processes) as pool:
        try:
            yield from zip(files, pool.map(partial(_extract_apart, settings=settings, stop=stop), files), strict=True)
        finally:  # a consumer that stops early, on Ctrl-C or a full disk, does not wait for the remaining files
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _extract_apart(path: Path, *, settings: ExtractSettings, stop: Event) -> _Found | str:
    """Read a file in a separate process: a damaged one may crash it, or take unbounded time or memory.

    A string is the reason for a failure: one file must not end the run.
    """
    docling = settings.uses_docling
    try:
        return call_apart(
            _extract,
            path,
            settings,
            stop=stop,
            seconds=_MOST_SECONDS,
            memory_bytes=resource.RLIM_INFINITY if docling else _MOST_MEMORY_BYTES,  # CUDA reserves TiB of addresses
            preload=(__name__, *(_DOCLING if docling else _LIBRARIES)),
        )
    except DataError as error:
        return str(error)
    except RuntimeError as error:  # what any library raises
        return f"the reader failed ({error}); convert it with another program"


def _keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS_FILE
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} cannot be read ({error}); choose another folder") from error
        check_same_settings(path, there, settings)
    elif (folder / RECORDS_FILE).exists():
        raise DataError(f"{folder} contains {RECORDS_FILE} without {SETTINGS_FILE}; choose another folder")
    else:
        write_atomically(path, json.dumps(settings, indent=2) + "\n")
