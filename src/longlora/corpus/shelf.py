"""A shelf of files to one JSONL, record by record: in several processes, and going on where an earlier run stopped.

`corpus.jsonl` holds a record for each text, in the order of the files. `settings.json` says what the texts were made
with, `skipped.json` which files gave no record and why. A record is appended with one write that ends in a newline; a
run that is killed while writing leaves a line without one, which the next run cuts off before it goes on.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_all_start_methods, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from longlora.corpus.extract import Record, Settings, check_engine, extract, sha256_of
from longlora.corpus.markup import UnreadableFileError
from longlora.corpus.near_duplicates import NearDuplicates, signature
from longlora.errors import ConfigError, DataError
from longlora.support.files import write_atomically

NearDuplicateRule = Literal["drop", "mark", "keep"]

RECORDS_FILE = "corpus.jsonl"
SETTINGS_FILE = "settings.json"
SKIPPED_FILE = "skipped.json"
TEXT_FOLDER = "texts"

_AHEAD = 4  # files that each process may be ahead of the one being written


@dataclass
class ShelfResult:
    """What became of the files."""

    num_written: int = 0
    num_done_before: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    """Files without a record, and why."""
    marked: dict[str, str] = field(default_factory=dict)
    """Files with a record that nearly repeats an earlier file's."""
    num_words: int = 0

    @property
    def has_texts(self) -> bool:
        """Whether there is anything to train on."""
        return self.num_written + self.num_done_before > 0


@dataclass
class _Found:
    """What a process made of a file: a record and its sketch, or a reason."""

    record: Record | None = None
    sketch: Any = None
    reason: str = ""


def read_shelf(
    files: Sequence[Path],
    folder: Path,
    *,
    settings: Settings | None = None,
    near_duplicates: NearDuplicateRule = "drop",
    processes: int = 1,
    write_texts: bool = False,
    progress: bool = True,
) -> ShelfResult:
    """Read files into `folder`; those whose content has a record there already are not read again.

    Raises:
        ConfigError: the folder holds texts made with other settings, or the engine asked for is not installed.
        DataError: what the folder holds is no corpus.
    """
    settings = settings or Settings()
    check_engine(settings.engine)
    folder.mkdir(parents=True, exist_ok=True)
    _keep_settings(folder, asdict(settings) | {"near_duplicates": near_duplicates})
    known = _read_records(folder / RECORDS_FILE)
    shelf = _Shelf(folder, near_duplicates, known, write_texts=write_texts)
    waiting = [path for path in files if shelf.is_new(path)]
    with _bar(len(files), len(files) - len(waiting), progress) as bar:
        for path, found in _extracted(waiting, settings, processes):
            shelf.put(path, found)
            bar.update(1)
    write_atomically(folder / SKIPPED_FILE, json.dumps(shelf.result.skipped, ensure_ascii=False, indent=2) + "\n")
    return shelf.result


class _Shelf:
    """Writes records, and knows which texts there are."""

    def __init__(
        self, folder: Path, rule: NearDuplicateRule, known: list[dict[str, Any]], *, write_texts: bool
    ) -> None:
        self.result = ShelfResult()
        self._folder, self._rule, self._write_texts = folder, rule, write_texts
        self._files = {record["sha256"]: record["file"] for record in known}
        self._near = NearDuplicates()
        if rule != "keep":
            for record in known:
                if "near_duplicate_of" not in record:
                    self._near.add(record["file"], signature(record["text"]))

    def is_new(self, path: Path) -> bool:
        """Tell whether a file's content has no record yet."""
        try:
            earlier = self._files.get(sha256_of(path))
        except OSError:
            return True  # the reader says why
        if earlier == str(path):
            self.result.num_done_before += 1
        elif earlier is not None:
            self.result.skipped[str(path)] = f"the same file as {earlier}"
        return earlier is None

    def put(self, path: Path, found: _Found) -> None:
        """Write what was found, unless it repeats what is there."""
        record = found.record
        if record is None:
            self._skip(path, found.reason)
            return
        if record.sha256 in self._files:
            self._skip(path, f"the same file as {self._files[record.sha256]}")
            return
        match = self._near.find(found.sketch) if self._rule != "keep" else None
        if match is not None:
            earlier, share = str(match[0]), match[1]
            if self._rule == "drop":
                self._skip(path, f"nearly the same text as {earlier} (about {share:.0%} of its runs of five words)")
                return
            record = replace(record, near_duplicate_of=earlier)
            self.result.marked[str(path)] = earlier
        elif self._rule != "keep":
            self._near.add(record.file, found.sketch)
        self._append(record)

    def _append(self, record: Record) -> None:
        line = json.dumps(record.to_dict(), ensure_ascii=False) + "\n"
        with (self._folder / RECORDS_FILE).open("ab") as file:
            file.write(line.encode("utf-8", errors="replace"))
            file.flush()
            os.fsync(file.fileno())
        self._files[record.sha256] = record.file
        self.result.num_written += 1
        self.result.num_words += len(record.text.split())
        if self._write_texts:
            texts = self._folder / TEXT_FOLDER
            texts.mkdir(exist_ok=True)
            write_atomically(texts / f"{Path(record.file).stem}-{record.sha256[:8]}.txt", record.text + "\n")

    def _skip(self, path: Path, reason: str) -> None:
        self.result.skipped[str(path)] = reason


def _extract(path: Path, settings: Settings, with_sketch: bool) -> _Found:
    """Read a file in a process of its own."""
    try:
        record = extract(path, settings)
    except UnreadableFileError as error:
        return _Found(reason=str(error))
    return _Found(record, signature(record.text) if with_sketch else None)


def _extracted(files: Sequence[Path], settings: Settings, processes: int) -> Iterator[tuple[Path, _Found]]:
    """Yield files in their order with what they give; one that ends its process is read again alone, then given up."""
    left = list(files)
    while left:
        try:
            for path, found in _by_pool(tuple(left), settings, processes):
                yield path, found
                left.remove(path)
            return
        except BrokenProcessPool:
            pass
        path = left[0]
        try:
            ((_, found),) = _by_pool([path], settings, 1)
        except BrokenProcessPool:
            found = _Found(reason="it makes the reader crash; convert it by another program")
        yield path, found
        left.remove(path)


def _by_pool(files: Sequence[Path], settings: Settings, processes: int) -> Iterator[tuple[Path, _Found]]:
    # A process of its own even for one: a damaged file may end it, but not the run.
    with ProcessPoolExecutor(processes, mp_context=_processes(), initializer=_end_with_parent) as pool:
        running: list[tuple[Path, Future[_Found]]] = []
        waiting = iter(files)
        try:
            while True:
                while len(running) < _AHEAD * processes and (path := next(waiting, None)) is not None:
                    running.append((path, pool.submit(_extract, path, settings, True)))
                if not running:
                    return
                path, future = running.pop(0)
                yield path, future.result()
        finally:
            for _, future in running:
                future.cancel()


def _processes() -> Any:
    """Processes are forked from one that has the libraries loaded, and no threads; where there is no fork, started."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "pypdfium2", "bs4", "lxml.etree", "trafilatura"])
    return context


def _end_with_parent() -> None:
    """A process that waits for work does not notice by itself that the run was killed."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _bar(total: int, done: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc="Reading", unit="file", disable=not progress)


def _keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS_FILE
    if not path.exists():
        if (folder / RECORDS_FILE).exists():
            raise DataError(f"{folder} holds a {RECORDS_FILE} without {SETTINGS_FILE}; choose another folder")
        write_atomically(path, json.dumps(settings, indent=2) + "\n")
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error}); choose another folder") from error
    differing = [name for name in settings if there.get(name) != settings[name]]
    if differing:
        changes = ", ".join(f"{name} {there.get(name)!r} there and {settings[name]!r} now" for name in differing)
        raise ConfigError(f"{folder} holds texts made with other settings ({changes}); choose another folder")


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Read the records of an earlier run, and cut off a last line that its end tore."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    records = []
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            record = json.loads(line)
            records.append({name: record[name] for name in ("sha256", "file", "text")} | record)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} has no record in line {number} ({error!r}); choose another folder") from error
    return records
