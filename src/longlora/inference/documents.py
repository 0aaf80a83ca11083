"""Documents to chat about: joined from files, and cut in the middle if they do not fit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from longlora.errors import DataError

ReadDocument = Callable[[Path], str]

_CUT_MARK = "\n\n[…]\n\n"
_STEP = 0.98  # factor by which the length shrinks while it is still too long


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document's text, and how much of it was cut."""

    name: str
    text: str
    num_tokens: int  # of the whole document
    num_cut: int = 0  # tokens cut out of the middle


def join_documents(paths: list[Path], read_document: ReadDocument) -> tuple[str, str]:
    """Read files, and return their joined names and texts; each of several texts is headed by its name.

    Raises:
        DataError: one cannot be read.
    """
    texts = [read_document(path).strip() for path in paths]
    if len(paths) > 1:
        texts = [f"{path.name}\n\n{text}" for path, text in zip(paths, texts, strict=True)]
    return ", ".join(path.name for path in paths), "\n\n\n".join(texts)


def cut_middle(document: Document, count: Callable[[str], int], *, limit: int) -> Document:
    """Cut as much from the middle of a document as it takes to fit into `limit` tokens, and mark the cut.

    The beginning of a document says what it is about, and the end what came of it.

    Raises:
        DataError: nothing would be left.
    """
    if document.num_tokens <= limit:
        return document
    text, kept = document.text, int(len(document.text) * limit / document.num_tokens)
    while kept > 0:
        shorter = text[: (kept + 1) // 2].rstrip() + _CUT_MARK + text[len(text) - kept // 2 :].lstrip()
        num_tokens = count(shorter)
        if num_tokens <= limit:
            return replace(document, text=shorter, num_cut=document.num_tokens - num_tokens)
        kept = int(kept * min(_STEP, limit / num_tokens))
    raise DataError(f"only {limit} tokens of context are free, too few for any part of {document.name}")
