"""Keeps what was computed from a source on disk, whole or not at all, for all who ask for the same.

datasets' own `from_generator` keeps tables too, but neither sees a damaged one nor keeps what was counted on the way.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter
from datasets.fingerprint import Hasher
from filelock import FileLock
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from longlora.errors import DataError
from longlora.support.files import remove_partial, whole_directory
from longlora.support.user_cache import user_cache

Summary = dict[str, Any]  # counts of what was written, `num_rows` among them

_TABLE_FILE = "documents.arrow"
_SUMMARY_FILE = "summary.json"
# Written at once: a row may hold a book.
_BATCH_ROWS = 100


def cached_dataset(
    identity: list[object],
    fill: Callable[[ArrowWriter], Summary],
    *,
    features: Features,
    cache_dir: str | Path | None,
) -> tuple[Dataset, Summary]:
    """Memory-map a table from `cache_dir`, after writing it there if it is not yet.

    Processes that ask for the same at once wait for the first of them. `identity` is all that decides the table, as
    JSON; `fill` writes the rows. The folder is `longlora` in the user's cache folder unless given.

    Raises:
        ConfigError: there is no folder for a cache.
        DataError: the cache cannot be written.
    """
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    cache = Path(cache_dir).expanduser() if cache_dir else user_cache(instead="data.cache_dir")
    folder = cache / "tokenized" / key
    if present := _open_cache(folder):
        return present
    with _writing("tokenized documents", f"to {folder.parent}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if present := _open_cache(folder):  # whoever held the lock before us has done the work
                return present
            remove_partial(folder)
            shutil.rmtree(folder, ignore_errors=True)  # damaged
            with whole_directory(folder) as partial:
                table = str(partial / _TABLE_FILE)
                with ArrowWriter(path=table, features=features, writer_batch_size=_BATCH_ROWS) as writer:
                    summary = fill(writer)
                    writer.finalize()
                (partial / _SUMMARY_FILE).write_text(json.dumps(summary), encoding="utf-8")
            return Dataset.from_file(str(folder / _TABLE_FILE)), summary


@contextmanager
def packing_beside(tokenized: Dataset) -> Iterator[None]:
    """Let one process at a time write packed rows beside the file of a data set; one in memory has none.

    Raises:
        DataError: they cannot be written.
    """
    lock = FileLock(f"{tokenized.cache_files[0]['filename']}.lock") if tokenized.cache_files else nullcontext()
    with _writing("packed rows", "beside the tokenized documents"), lock:
        yield


@contextmanager
def _writing(what: str, where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{what} cannot be written {where} ({error.strerror or error}); "
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
