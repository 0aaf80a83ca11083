"""What decides the records of a set: fixed in its journal from the first call on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from longlora.errors import ConfigError

Kind = Literal["auto", "book", "paper"]
Quotes = Literal["exact", "fuzzy", "off"]

_RULES: dict[str, Callable[[float], bool]] = {
    "be at least 1": lambda value: value >= 1,
    "not be negative": lambda value: value >= 0,
    "be above 0": lambda value: value > 0,
    "be above 0 and at most 1": lambda value: 0 < value <= 1,
}


def require(rule: str, **options: float | None) -> None:
    """Check values of the command line's options by one of the rules; None is no value.

    Raises:
        ConfigError: a value breaks the rule.
    """
    for name, value in options.items():
        if value is not None and not _RULES[rule](value):
            raise ConfigError(f"--{name.replace('_', '-')} must {rule}, got {value}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a set is made: options of `longlora corpus make-qa`, whose help says more.

    Raises:
        ConfigError: a value is out of range.
    """

    model: str
    window: int
    """Tokens that the answering model reads and writes in one call."""
    kind: Kind = "auto"
    """What the documents are; `auto` takes a text with an abstract and references for a paper."""
    tokenizer: str | None = None
    """Name of the tokenizer that measures; None estimates by `chars_per_token`."""
    chars_per_token: float = 3.0
    """English prose has about 4: fewer leaves a margin."""
    questions: int = 2
    """Asked for in one call, so for each kind and material."""
    ask_sections: int = 8
    reply_tokens: int = 2048
    """Most tokens of a reply with questions, or with verdicts."""
    notes_tokens: int = 1024
    """Most tokens of the notes on a section."""
    temperature: float = 0.7
    seed: int = 0
    """A repeated call has the next one."""
    tries: int = 2
    """Calls for the same questions until a reply can be read."""
    quotes: Quotes = "exact"
    """How an answer's quotations are looked for in the document; `off` asks for them and does not look."""
    quote_similarity: float = 0.85
    judge: bool = False
    duplicate_similarity: float = 0.7
    """Share of words (Jaccard) from which two questions about one document count as the same."""
    max_document_tokens: int | None = None

    def __post_init__(self) -> None:
        require("be at least 1", window=self.window, questions=self.questions, reply_tokens=self.reply_tokens)
        require("be at least 1", notes_tokens=self.notes_tokens, tries=self.tries)
        require("be at least 1", max_document_tokens=self.max_document_tokens)
        require("not be negative", ask_sections=self.ask_sections, temperature=self.temperature, seed=self.seed)
        require("be above 0 and at most 1", quote_similarity=self.quote_similarity)
        require("be above 0 and at most 1", duplicate_similarity=self.duplicate_similarity)
        require("be above 0", chars_per_token=self.chars_per_token)
