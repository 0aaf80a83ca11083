"""Texts by name, as tokens to score or as a haystack."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from longlora.data import read_documents, tokenize_documents
from longlora.data.sources import DocumentSource
from longlora.errors import DataError
from longlora.evaluation.binary import TOKEN_FILE_SUFFIX, read_token_file
from longlora.evaluation.scoring import Document


@dataclass(frozen=True)
class Texts:
    """Where texts are and how they are read; `read_documents` says what a source may be."""

    sources: Sequence[str]
    text_column: str = "text"
    split: str = "validation"
    max_documents: int | None = None
    name: str = ""
    """What to call them in results, if not by the sources."""

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

    def tokens(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int, *, across_documents: bool = False
    ) -> Sequence[Document]:
        """Tokenise the documents, or map a `.bin` of tokens, which is one stream, into memory.

        Raises:
            DataError: the texts cannot be read, or a `.bin` stands beside other sources.
        """
        if any(source.endswith(TOKEN_FILE_SUFFIX) for source in self.sources):
            if len(self.sources) > 1:
                raise DataError(f"a .bin of tokens must be the only source, not one of {', '.join(self.sources)}")
            return [read_token_file(self.sources[0], vocabulary_size)]
        documents: Sequence[Document] = tokenize_documents(self.read(), tokenizer)["input_ids"]
        return [np.concatenate([np.asarray(document) for document in documents])] if across_documents else documents
