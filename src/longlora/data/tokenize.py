"""Turns documents into token ids, once, and keeps them on disk."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow
from datasets import Dataset
from datasets.fingerprint import Hasher
from filelock import FileLock
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from longlora.data.sources import DocumentSource
from longlora.errors import DataError

logger = logging.getLogger("longlora")

# Raise it when the same source and tokenizer come to give other ids or columns.
FORMAT_VERSION = 1

_SCHEMA = pyarrow.schema({"name": pyarrow.string(), "input_ids": pyarrow.list_(pyarrow.int32())})
_DOCUMENTS_FILE = "documents.arrow"
_SUMMARY_FILE = "summary.json"
# Given to the tokenizer at once: several books, so that it can use several cores.
_BATCH_CHARACTERS = 4_000_000
_BATCH_DOCUMENTS = 1000


def tokenize_documents(
    source: DocumentSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> Dataset:
    """Tokenize every document, with the tokenizer's own special tokens and its EOS at the end.

    The result is memory-mapped from `cache_dir` (default: `longlora` in the user's cache folder) and found there again
    while source and tokenizer are the same. Processes that ask for the same at once wait for the first of them.

    Args:
        source: documents from `read_documents`.
        tokenizer: any tokenizer of transformers; documents may be longer than its `model_max_length`.
        cache_dir: folder that may grow by four bytes per token.
        show_progress: whether to draw a bar that counts documents and tokens.

    Returns:
        Columns `name` (string) and `input_ids` (list of int32), one row per document.

    Raises:
        DataError: the source cannot be read, or the cache cannot be written.
    """
    identity = [FORMAT_VERSION, source.identity, _tokenizer_identity(tokenizer)]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    folder = (Path(cache_dir).expanduser() if cache_dir else _default_cache_dir()) / "tokenized" / key
    documents = _open_cache(folder)
    if documents is not None:
        return documents
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            # Whoever held the lock before us may have done the work.
            documents = _open_cache(folder)
            return documents if documents is not None else _fill_cache(folder, source, tokenizer, show_progress)
    except OSError as error:
        raise DataError(
            f"tokenized documents cannot be written to {folder.parent} ({error.strerror or error}); "
            "set data.cache_dir to a writable folder with room"
        ) from error


def _default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longlora"


def _tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> list[object]:
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.split_special_tokens]
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return [Hasher.hash(tokenizer), *special]
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # These two are left over from the last call of the tokenizer, and ours sets its own.
    del backend["truncation"], backend["padding"]
    return [type(tokenizer).__name__, backend, *special]


def _open_cache(folder: Path) -> Dataset | None:
    try:
        summary = json.loads((folder / _SUMMARY_FILE).read_text(encoding="utf-8"))
        documents = Dataset.from_file(str(folder / _DOCUMENTS_FILE))
    except (OSError, ValueError):
        return None
    return documents if len(documents) == summary["num_documents"] else None


def _fill_cache(
    folder: Path, source: DocumentSource, tokenizer: PreTrainedTokenizerBase, show_progress: bool
) -> Dataset:
    partial = folder.with_suffix(".partial")
    # Left by a process that was killed; we hold the lock, so nobody is at work on it.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        summary = _write_documents(partial / _DOCUMENTS_FILE, source, tokenizer, show_progress)
        (partial / _SUMMARY_FILE).write_text(json.dumps(summary), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("tokenized %(num_documents)d documents into %(num_tokens)d tokens", summary)
    return Dataset.from_file(str(folder / _DOCUMENTS_FILE))


def _write_documents(
    path: Path, source: DocumentSource, tokenizer: PreTrainedTokenizerBase, show_progress: bool
) -> dict[str, int]:
    num_documents = num_tokens = 0
    with (
        path.open("wb") as file,
        pyarrow.ipc.new_stream(file, _SCHEMA) as writer,
        tqdm(desc="Tokenizing", total=source.num_documents, unit=" documents", disable=not show_progress) as bar,
    ):
        for names, texts in _batches(source):
            batch_ids = _tokenize(texts, tokenizer)
            writer.write_batch(pyarrow.record_batch([names, batch_ids], schema=_SCHEMA))
            num_documents += len(names)
            num_tokens += sum(map(len, batch_ids))
            bar.update(len(names))
            bar.set_postfix(tokens=f"{num_tokens:,}")
        writer.close()
        # The rename must not reach the disk before what it names.
        file.flush()
        os.fsync(file.fileno())
    return {"num_documents": num_documents, "num_tokens": num_tokens}


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    # verbose=False: no warning about documents longer than the old context; they are what this is for.
    batch_ids = tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, verbose=False)["input_ids"]
    eos = tokenizer.eos_token_id
    return [ids if eos is None or ids[-1:] == [eos] else [*ids, eos] for ids in batch_ids]


def _batches(source: DocumentSource) -> Iterator[tuple[list[str], list[str]]]:
    names: list[str] = []
    texts: list[str] = []
    num_characters = 0
    for name, text in source:
        names.append(name)
        texts.append(text)
        num_characters += len(text)
        if num_characters >= _BATCH_CHARACTERS or len(texts) == _BATCH_DOCUMENTS:
            yield names, texts
            names, texts, num_characters = [], [], 0
    if texts:
        yield names, texts
