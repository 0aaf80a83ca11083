"""Texts by name, as tokens to score or as a haystack; and token files as the original LongLoRA and nanoGPT have them.

A token file is bare token ids, little-endian, without a header: two bytes a token while the vocabulary fits (65,536
tokens, all that the original has), four bytes above. Nothing in the file tells which; the model's vocabulary does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from longlora.data import read_documents, tokenize_documents
from longlora.data.sources import DocumentSource
from longlora.errors import DataError
from longlora.evaluation.scoring import Document, check_ids, joined
from longlora.support.files import replaced_file

TOKEN_FILE_SUFFIX = ".bin"


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
    beginning = tokens[: 1 << 20]
    if dtype.itemsize == 2 and len(beginning) >= 16 and not beginning[1::2].any():
        raise DataError(
            f"{path} looks like tokens of 4 bytes (every other half is 0), but a vocabulary of {vocabulary_size} "
            "tokens is written in 2: it was made for another model; write it anew with this model's tokenizer"
        )
    check_ids(tokens, vocabulary_size, str(path))
    return tokens


def write_token_file(path: str | Path, documents: Iterable[Document], vocabulary_size: int) -> int:
    """Write documents one after another into a token file, and return the number of tokens.

    Raises:
        DataError: an id does not belong to the vocabulary, or there is nothing to write.
    """
    path, dtype, num_tokens = Path(path).expanduser(), token_dtype(vocabulary_size), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary:
        with temporary.open("wb") as file:
            for index, document in enumerate(documents):
                ids = np.asarray(document)
                check_ids(ids, vocabulary_size, f"Document {index}")
                file.write(ids.astype(dtype).tobytes())
                num_tokens += ids.size
        if not num_tokens:
            raise DataError("there are no tokens to write: every document is empty")
    return num_tokens


@dataclass(frozen=True)
class Texts:
    """Where texts are and how they are read; `read_documents` says what a source may be."""

    sources: Sequence[str]
    text_column: str = "text"
    split: str = "validation"
    max_documents: int | None = None
    across_documents: bool = False  # join all documents into one stream
    name: str = ""  # what to call them in results, if not by the sources

    @property
    def description(self) -> str:
        """The texts in a few words."""
        named = self.name or ", ".join(self.sources)
        return named + (f", {self.max_documents} documents at most" if self.max_documents else "")

    def read(self) -> DocumentSource:
        """Find the documents."""
        return read_documents(
            list(self.sources), text_column=self.text_column, split=self.split, max_documents=self.max_documents
        )

    def tokens(self, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int) -> Sequence[Document]:
        """Tokenise the documents, or map a `.bin` of tokens, which is one stream, into memory.

        Raises:
            DataError: the texts cannot be read, or a `.bin` stands beside other sources.
        """
        if any(source.endswith(TOKEN_FILE_SUFFIX) for source in self.sources):
            if len(self.sources) > 1:
                raise DataError(f"a .bin of tokens must be the only source, not one of {', '.join(self.sources)}")
            return [read_token_file(self.sources[0], vocabulary_size)]
        documents: Sequence[Document] = tokenize_documents(self.read(), tokenizer)["input_ids"]
        return joined(documents) if self.across_documents else documents
