"""What decides the records of a set: fixed in its journal from the first call on."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from longlora.errors import ConfigError

Kind = Literal["auto", "book", "paper"]
Quotes = Literal["exact", "fuzzy", "off"]

CHAT_TOKENS = 64
"""Tokens left free in every prompt for what a chat template writes around it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a set is made.

    Raises:
        ConfigError: a value is out of range.
    """

    model: str
    """Name of the answering model."""

    window: int
    """Tokens the answering model reads and writes in one call."""

    kind: Kind = "auto"
    """What the documents are; `auto` takes a text with an abstract and references for a paper."""

    tokenizer: str | None = None
    """Directory or hub name of the tokenizer that measures; None estimates by `chars_per_token`."""

    chars_per_token: float = 3.0
    """Characters for one token where there is no tokenizer. English prose has about 4: fewer leaves a margin."""

    questions: int = 2
    """Questions asked for in one call, so for each kind and material."""

    ask_sections: int = 8
    """Most sections of a document that are asked about by themselves, evenly spread."""

    reply_tokens: int = 2048
    """Most tokens of a reply with questions, or with verdicts."""

    notes_tokens: int = 1024
    """Most tokens of the notes on a section."""

    temperature: float = 0.7
    """Of the sampling; 0 is greedy."""

    seed: int = 0
    """Sent along with each call; a repeated call has the next one."""

    tries: int = 2
    """Calls for the same questions until a reply can be read."""

    quotes: Quotes = "exact"
    """How an answer's quotations are looked for in the document; `off` asks for them and does not look."""

    quote_similarity: float = 0.85
    """Share of a quotation's words that must be found in their order, for `fuzzy`."""

    judge: bool = False
    """Whether the model reads the material again and judges its answers."""

    duplicate_similarity: float = 0.7
    """Share of words (Jaccard) from which two questions about one document count as the same."""

    max_document_tokens: int | None = None
    """Documents are cut to so many tokens before anything else."""

    def __post_init__(self) -> None:
        for name in ("window", "questions", "reply_tokens", "notes_tokens", "tries", "max_document_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{_option(name)} must be at least 1, got {value}")
        for name in ("ask_sections", "temperature", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{_option(name)} must not be negative, got {getattr(self, name)}")
        for name in ("quote_similarity", "duplicate_similarity"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{_option(name)} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.chars_per_token <= 0:
            raise ConfigError(f"--chars-per-token must be above 0, got {self.chars_per_token}")

    def header(self, prompts_sha256: str) -> dict[str, Any]:
        """Settings and prompts as the journal's first line keeps them."""
        return asdict(self) | {"prompts": prompts_sha256}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
