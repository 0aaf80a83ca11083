"""Evaluation texts by name, as tokens or as a haystack, and the token files of the original LongLoRA and nanoGPT.

A token file holds little-endian token ids without a header: two bytes per token for vocabularies up to 65,536 (the only
kind the original has), four bytes above. The file does not record the width; it follows from the model's vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from longlora.data.document_rows import tokenize_documents
from longlora.data.sources import DocumentSource, read_documents
from longlora.errors import DataError
from longlora.evaluation.logits import vocabulary_size
from longlora.evaluation.scoring import TokenIds, check_ids, joined, token_arrays, token_digest
from longlora.evaluation.subject import Subject
from longlora.models.load import load_config, load_tokenizer, model_source
from longlora.support.files import replaced_file

TOKEN_FILE_SUFFIX = ".bin"


def token_dtype(vocabulary_size: int) -> np.dtype:
    """Return the dtype of a token file: uint16, or uint32 for vocabularies above 65,536 tokens."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def read_token_file(path: str | Path, vocabulary_size: int) -> np.ndarray:
    """Memory-map a token file as one stream, after checking that it matches the vocabulary.

    Raises:
        DataError: the file is missing, empty, truncated, of the other width, or has ids outside the vocabulary.
    """
    path, dtype = Path(path).expanduser(), token_dtype(vocabulary_size)
    if not path.is_file():
        raise DataError(f"there is no token file {path}")
    size = path.stat().st_size
    if size == 0 or size % dtype.itemsize:
        raise DataError(
            f"{path} must hold whole tokens of {dtype.itemsize} bytes, the width for a vocabulary of "
            f"{vocabulary_size} tokens, but has {size} bytes: it is truncated, or written for another vocabulary"
        )
    tokens = np.memmap(path, dtype=dtype, mode="r")
    beginning = tokens[: 1 << 20]
    if dtype.itemsize == 2 and len(beginning) >= 16 and not beginning[1::2].any():
        raise DataError(
            f"{path} looks like tokens of 4 bytes (every other half is 0), but a vocabulary of {vocabulary_size} "
            "tokens is written in 2: it was made for another model; write it again with this model's tokenizer"
        )
    check_ids(tokens, vocabulary_size, str(path))
    return tokens


def write_token_file(path: str | Path, documents: Iterable[TokenIds], vocabulary_size: int) -> int:
    """Write documents one after another into a token file, and return the number of tokens.

    Raises:
        DataError: an id is outside the vocabulary, or there is nothing to write.
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


@dataclass(frozen=True, kw_only=True)
class ModelAndTexts:
    """A model under evaluation, and the texts that it reads, as its own tokens."""

    subject: Subject
    texts: "Texts"
    documents: Sequence[np.ndarray]
    is_joined: bool | None = None  # whether documents too short had to be joined; None if that was not asked for

    @cached_property
    def about(self) -> dict[str, Any]:
        """The settings that determine the documents, with a digest of their tokens."""
        about = {"data": self.texts.description, "tokens": token_digest(self.documents)}
        return about if self.is_joined is None else about | {"joined": self.is_joined}

    @property
    def longest(self) -> int:
        """The number of tokens of the longest document."""
        return max(map(len, self.documents))


@dataclass(frozen=True)
class Texts:
    """Where texts are and how to read them; `read_documents` describes the possible sources."""

    sources: Sequence[str]
    text_column: str = "text"
    split: str = "validation"
    max_documents: int | None = None
    across_documents: bool = False  # join all documents into one stream
    name: str = ""  # in the results, instead of the sources

    @property
    def description(self) -> str:
        """A short description of the texts."""
        named = self.name or ", ".join(self.sources)
        return named + (f", {self.max_documents} documents at most" if self.max_documents else "")

    def read(self) -> DocumentSource:
        """Open the documents."""
        return read_documents(
            list(self.sources), text_column=self.text_column, split=self.split, max_documents=self.max_documents
        )

    def tokens(self, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int) -> Sequence[TokenIds]:
        """Tokenize the documents, or memory-map a `.bin` of tokens, which is one stream.

        Raises:
            DataError: the texts cannot be read, or a `.bin` is combined with other sources.
        """
        if any(source.endswith(TOKEN_FILE_SUFFIX) for source in self.sources):
            if len(self.sources) > 1:
                raise DataError(f"a .bin of tokens must be the only source, not one of {', '.join(self.sources)}")
            return [read_token_file(self.sources[0], vocabulary_size)]
        documents: Sequence[TokenIds] = tokenize_documents(self.read(), tokenizer)["input_ids"]
        return joined(documents) if self.across_documents else documents

    def read_by(self, subject: Subject, *, least: int | None = None) -> ModelAndTexts:
        """Tokenize the texts for a model, joining them if none has `least` tokens.

        Raises:
            DataError: as `tokens`, or there are no texts, or ids outside the vocabulary.
        """
        documents = token_arrays(subject.model, self.tokens(subject.tokenizer, vocabulary_size(subject.model)))
        too_short = None if least is None else max(map(len, documents)) < least
        documents = joined(documents) if too_short else documents
        return ModelAndTexts(subject=subject, texts=self, documents=documents, is_joined=too_short)


def write_tokens(model_name: str, texts: Texts, path: str | Path) -> int:
    """Tokenize texts with a model's tokenizer and write them as a `.bin`; return the number of tokens.

    Raises:
        CheckpointError: the tokenizer cannot be loaded.
        DataError: the texts cannot be read, or the file is not named `.bin`.
    """
    if Path(path).suffix != TOKEN_FILE_SUFFIX:
        raise DataError(f"a token file must be named .bin, or it would be read as text; got {path}")
    name = model_source(model_name)
    size = load_config(name).get_text_config().vocab_size
    return write_token_file(path, texts.tokens(load_tokenizer(name), size), size)
