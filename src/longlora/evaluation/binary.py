"""Token files as the original LongLoRA and nanoGPT write them: bare token ids, little-endian, without a header.

Two bytes a token while the vocabulary fits (65,536 tokens, all that the original has), four bytes above. Nothing in the
file tells which; the vocabulary of the model it was made for does.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from longlora.errors import DataError
from longlora.evaluation.scoring import Document

TOKEN_FILE_SUFFIX = ".bin"
_TOKENS_PER_CHECK = 1 << 20


def token_dtype(vocabulary_size: int) -> np.dtype:
    """Name the type of a token in the file of a vocabulary: uint16, or uint32 above 65,536 tokens."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def read_token_file(path: str | Path, vocabulary_size: int) -> np.ndarray:
    """Map a token file into memory as one stream, and refuse one that this vocabulary cannot have written.

    Raises:
        DataError: the file is missing, empty, cut short, of the other width, or has ids beyond the vocabulary.
    """
    path, dtype = Path(path).expanduser(), token_dtype(vocabulary_size)
    if not path.is_file():
        raise DataError(f"there is no token file {path}")
    size = path.stat().st_size
    if size == 0 or size % dtype.itemsize:
        raise DataError(
            f"{path} must be whole tokens of {dtype.itemsize} bytes, as a vocabulary of {vocabulary_size} tokens "
            f"writes them, and it has {size} bytes: it is cut short, or made with another vocabulary"
        )
    tokens = np.memmap(path, dtype=dtype, mode="r")
    beginning = tokens[:_TOKENS_PER_CHECK]
    if dtype.itemsize == 2 and len(beginning) >= 16 and not beginning[1::2].any():
        raise DataError(
            f"{path} looks like tokens of 4 bytes (every other half is 0), but a vocabulary of {vocabulary_size} "
            "tokens is written in 2: it was made for another model; write it anew with this model's tokenizer"
        )
    for first in range(0, len(tokens), _TOKENS_PER_CHECK):
        largest = int(tokens[first : first + _TOKENS_PER_CHECK].max())
        if largest >= vocabulary_size:
            raise DataError(
                f"{path} has token id {largest} and the model knows 0 to {vocabulary_size - 1}: it was made for "
                "another model; write it anew with this model's tokenizer"
            )
    return tokens


def write_token_file(path: str | Path, documents: Iterable[Document], vocabulary_size: int) -> int:
    """Write documents one after another into a token file, and return the number of tokens.

    Raises:
        DataError: an id does not belong to the vocabulary, or there is nothing to write.
    """
    path, dtype, num_tokens = Path(path).expanduser(), token_dtype(vocabulary_size), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            for index, document in enumerate(documents):
                ids = np.asarray(document)
                if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary_size:
                    raise DataError(
                        f"document {index} has token ids {ids.min()} to {ids.max()}, the vocabulary has 0 to "
                        f"{vocabulary_size - 1}: tokenise with the model's own tokenizer"
                    )
                file.write(ids.astype(dtype).tobytes())
                num_tokens += ids.size
        if not num_tokens:
            raise DataError("there are no tokens to write: every document is empty")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return num_tokens
