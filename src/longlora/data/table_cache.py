"""Cache what was computed from a source on disk, atomically, for all processes that need it.

datasets' own `from_generator` caches tables too, but does not detect damage or keep counts made while writing.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter
from datasets.fingerprint import Hasher
from filelock import FileLock
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from longlora.errors import DataError
from longlora.support.digests import find_damage, is_sealed
from longlora.support.files import remove_partial, whole_directory
from longlora.support.machine import user_cache

logger = logging.getLogger("longlora")

Summary = dict[str, Any]  # counts of what was written, `num_rows` among them

_TABLE_FILE = "documents.arrow"
_SUMMARY_FILE = "summary.json"
# Written at once: a row may be a book.
_BATCH_ROWS = 100


def cached_dataset(
    identity: list[object], fill: Callable[[ArrowWriter], Summary], *, features: Features, cache_dir: str | Path | None
) -> tuple[Dataset, Summary]:
    """Memory-map a table from `cache_dir`, after writing it there if it is missing or damaged.

    Concurrent processes wait for the first of them. `identity` is everything that determines the table, as JSON; `fill`
    writes the rows. The default folder is `longlora` in the user's cache folder. The table is read once to check its
    digest, at about 2.5 seconds per GiB.

    Raises:
        ConfigError: there is no folder for a cache.
        DataError: the cache cannot be written.
    """
    cache = Path(cache_dir).expanduser() if cache_dir else user_cache(instead="data.cache_dir")

    def write(table: Path) -> Summary:
        with ArrowWriter(path=str(table), features=features, writer_batch_size=_BATCH_ROWS) as writer:
            summary = fill(writer)
            writer.finalize()
        return summary

    return _kept(cache / "tokenized" / _key(identity), write, "tokenized documents")


def rows_beside(tokenized: Dataset, identity: list[object], pack: Callable[..., Dataset]) -> Dataset:
    """Memory-map the rows made from a table, after writing them beside its file if they are missing or damaged.

    `identity` is everything that determines the rows besides the table, as JSON; `pack` makes them, and passes its
    arguments to `Dataset.map`. The rows of a table in memory stay in memory.

    Raises:
        DataError: they cannot be written.
    """
    if not tokenized.cache_files:
        with _writing("packed rows", "beside the tokenized documents"):
            return pack()

    def write(table: Path) -> Summary:
        return {"num_rows": len(pack(cache_file_name=str(table), load_from_cache_file=False))}

    beside = Path(tokenized.cache_files[0]["filename"]).parent
    return _kept(beside / f"rows-{_key(identity)}", write, "packed rows")[0]


def _kept(folder: Path, write: Callable[[Path], Summary], what: str) -> tuple[Dataset, Summary]:
    if present := _open_cache(folder):
        return present
    with _writing(what, f"to {folder.parent}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if is_sealed(folder) and (present := _open_cache(folder)):  # another process did the work
                return present
            remove_partial(folder)
            shutil.rmtree(folder, ignore_errors=True)  # damaged
            with whole_directory(folder) as partial:
                summary = write(partial / _TABLE_FILE)
                (partial / _SUMMARY_FILE).write_text(json.dumps(summary), encoding="utf-8")
            return Dataset.from_file(str(folder / _TABLE_FILE)), summary


def _key(identity: list[object]) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


@contextmanager
def _writing(what: str, where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{what} cannot be written {where} ({error.strerror or error}); "
            "set data.cache_dir to a writable folder with enough space"
        ) from error


def content_digest(rows: Dataset) -> str:
    """Return the SHA-256 of the numbers in a table's lists, column by column, independent of their memory layout."""
    digest = hashlib.sha256()
    for table in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        for name in sorted(table.column_names):
            lists = table[name]
            digest.update(f"{name} {len(lists)}".encode())
            digest.update(pyarrow.compute.list_value_length(lists).to_numpy().astype(np.int64).data)
            for chunk in lists.chunks:
                digest.update(np.ascontiguousarray(chunk.flatten().to_numpy()).data)
    return digest.hexdigest()


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    """Return everything that determines a tokenizer's ids."""
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.split_special_tokens]
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return [Hasher.hash(tokenizer), *special]
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # These two are left over from the tokenizer's last call; ours sets its own.
    del backend["truncation"], backend["padding"]
    return [type(tokenizer).__name__, backend, *special]


def _open_cache(folder: Path) -> tuple[Dataset, Summary] | None:
    if not folder.exists():
        return None
    if damage := find_damage(folder):
        logger.warning("%s is damaged (%s) and will be rebuilt", folder, damage)
        return None
    summary = json.loads((folder / _SUMMARY_FILE).read_text(encoding="utf-8"))
    return Dataset.from_file(str(folder / _TABLE_FILE)), summary
