"""Keeps what was computed from a source on disk, whole or not at all, for all who ask for the same."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset
from datasets.fingerprint import Hasher
from filelock import FileLock
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from longlora.errors import DataError
from longlora.support.user_cache import user_cache

Summary = dict[str, Any]
"""Counts of what was written; `num_rows` among them."""

_TABLE_FILE = "documents.arrow"
_SUMMARY_FILE = "summary.json"


def cached_dataset(
    identity: list[object],
    fill: Callable[[pyarrow.ipc.RecordBatchStreamWriter], Summary],
    *,
    schema: pyarrow.Schema,
    cache_dir: str | Path | None,
) -> tuple[Dataset, Summary]:
    """Memory-map a table from `cache_dir`, after writing it there if it is not yet.

    Processes that ask for the same at once wait for the first of them.

    Args:
        identity: all that decides the table; must be writable as JSON.
        fill: writes the rows and returns their summary.
        schema: the table's columns.
        cache_dir: by default `longlora` in the user's cache folder.

    Raises:
        ConfigError: there is no folder for a cache.
        DataError: the cache cannot be written.
    """
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    cache = Path(cache_dir).expanduser() if cache_dir else user_cache(instead="data.cache_dir")
    folder = cache / "tokenized" / key
    present = _open_cache(folder)
    if present is not None:
        return present
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            # Whoever held the lock before us may have done the work.
            present = _open_cache(folder)
            return present if present is not None else _fill_cache(folder, fill, schema)
    except OSError as error:
        raise DataError(
            f"tokenized documents cannot be written to {folder.parent} ({error.strerror or error}); "
            "set data.cache_dir to a writable folder with room"
        ) from error


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    """All that decides which ids a tokenizer gives."""
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.split_special_tokens]
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return [Hasher.hash(tokenizer), *special]
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # These two are left over from the last call of the tokenizer, and ours sets its own.
    del backend["truncation"], backend["padding"]
    return [type(tokenizer).__name__, backend, *special]


def _open_cache(folder: Path) -> tuple[Dataset, Summary] | None:
    try:
        summary = json.loads((folder / _SUMMARY_FILE).read_text(encoding="utf-8"))
        rows = Dataset.from_file(str(folder / _TABLE_FILE))
    except (OSError, ValueError):
        return None
    return (rows, summary) if len(rows) == summary.get("num_rows") else None


def _fill_cache(
    folder: Path, fill: Callable[[pyarrow.ipc.RecordBatchStreamWriter], Summary], schema: pyarrow.Schema
) -> tuple[Dataset, Summary]:
    partial = folder.with_suffix(".partial")
    # Left by a process that was killed; we hold the lock, so nobody is at work on it.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with (partial / _TABLE_FILE).open("wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
            summary = fill(writer)
            writer.close()
            # The rename must not reach the disk before what it names.
            file.flush()
            os.fsync(file.fileno())
        (partial / _SUMMARY_FILE).write_text(json.dumps(summary), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Dataset.from_file(str(folder / _TABLE_FILE)), summary
