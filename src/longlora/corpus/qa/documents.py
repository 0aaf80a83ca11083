"""The documents to ask about: read as training reads them, each once, with its kind and its sections."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from longlora.corpus.qa.sections import TokenCounter, cut_length, cut_sections
from longlora.corpus.qa.settings import Settings
from longlora.data import DocumentSource

# A paper says so: a heading "Abstract" near its beginning, and one of the references behind its middle.
_ABSTRACT = re.compile(r"^\W*abstract\b|\\begin\{abstract\}", re.IGNORECASE | re.MULTILINE)
_REFERENCES = re.compile(
    r"^\W*(?:\d+\.?\s+)?(?:references|bibliography|literature cited)\W*$|\\bibliography\{|\\begin\{thebibliography\}",
    re.IGNORECASE | re.MULTILINE,
)
_ABSTRACT_WITHIN = 10_000  # characters


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text to ask about, after it was cut."""

    name: str
    text: str = field(repr=False)
    sha256: str
    """Digest of the text as it was read, before it was cut."""

    kind: Literal["book", "paper"]
    num_tokens: int
    is_cut: bool
    sections: tuple[tuple[int, int], ...]
    """Beginning and end of each, in characters."""

    def section(self, number: int) -> str:
        """Text of a section, counted from 0."""
        begin, end = self.sections[number]
        return self.text[begin:end]


@dataclass(frozen=True)
class _Layout:
    kind: Literal["book", "paper"]
    length: int
    num_tokens: int
    sections: tuple[tuple[int, int], ...]


class Documents:
    """Reads documents, as often as they are iterated, and lays each out once.

    A text that comes a second time is left out and named in `repeated`.
    """

    def __init__(
        self, source: DocumentSource, *, settings: Settings, counter: TokenCounter, room: Mapping[str, int]
    ) -> None:
        self._source = source
        self._settings = settings
        self._counter = counter
        self._room = room
        self._layouts: dict[str, _Layout] = {}
        self.repeated: list[str] = []

    def __iter__(self) -> Iterator[Document]:
        """Read from the first document on."""
        self.repeated.clear()
        seen: set[str] = set()
        for name, text in self._source:
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            if sha256 in seen:
                self.repeated.append(name)
                continue
            seen.add(sha256)
            layout = self._layouts.get(sha256) or self._lay_out(text)
            self._layouts[sha256] = layout
            yield Document(
                name=name,
                text=text[: layout.length],
                sha256=sha256,
                kind=layout.kind,
                num_tokens=layout.num_tokens,
                is_cut=layout.length < len(text),
                sections=layout.sections,
            )

    def _lay_out(self, text: str) -> _Layout:
        kind = detect_kind(text) if self._settings.kind == "auto" else self._settings.kind
        starts = self._counter.starts(text)
        length = len(text)
        if (most := self._settings.max_document_tokens) is not None and len(starts) > most:
            length = cut_length(text, starts, most)
            text = text[:length]
            starts = self._counter.starts(text)
        sections = tuple(cut_sections(text, starts, self._room[kind]))
        return _Layout(kind=kind, length=length, num_tokens=len(starts), sections=sections)


def detect_kind(text: str) -> Literal["book", "paper"]:
    """Take a text with an abstract at its beginning and references at its end for a paper, any other for a book."""
    has_abstract = _ABSTRACT.search(text[:_ABSTRACT_WITHIN])
    return "paper" if has_abstract and _REFERENCES.search(text, len(text) // 2) else "book"
