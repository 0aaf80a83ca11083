"""The options of `longlora corpus make-qa`: settings that determine the records, and how calls are sent."""

from collections.abc import Callable
from dataclasses import dataclass

from longlora.errors import ConfigError
from longlora.support.choices import DocumentKindOrAuto, Quotes

_RULES: dict[str, Callable[[float], bool]] = {
    "be at least 1": lambda value: value >= 1,
    "not be negative": lambda value: value >= 0,
    "be above 0": lambda value: value > 0,
    "be above 0 and at most 1": lambda value: 0 < value <= 1,
}


def require(rule: str, **options: float | None) -> None:
    """Check values of command-line options against one of the rules; None is not checked.

    Raises:
        ConfigError: a value violates the rule.
    """
    for name, value in options.items():
        if value is not None and not _RULES[rule](value):
            raise ConfigError(f"--{name.replace('_', '-')} must {rule}, got {value}")


@dataclass(frozen=True, kw_only=True)
class QASettings:
    """Settings that determine the records, fixed in the journal from the first call on.

    Raises:
        ConfigError: a value is out of range.
    """

    model: str
    window: int  # tokens that the answering model reads and writes in one call
    kind: DocumentKindOrAuto = "auto"  # "auto" detects papers, as by an abstract and references
    tokenizer: str | None = None  # name; None estimates tokens by `chars_per_token`
    chars_per_token: float = 3.0  # English prose has about 4: a lower value leaves a margin
    questions: int = 2  # of each kind, over each material
    ask_sections: int = 8  # the most sections of a long document to ask about one by one
    reply_tokens: int = 2048  # limit for a reply with questions or verdicts
    notes_tokens: int = 1024  # limit for the notes on a section
    temperature: float = 0.7
    seed: int = 0  # a repeated call uses the next one
    tries: int = 2  # attempts at the same questions until a reply can be read
    quotes: Quotes = "exact"  # how quotations are matched with the document; `off` still requests them, unchecked
    quote_similarity: float = 0.85
    judge: bool = False
    duplicate_similarity: float = 0.7  # share of words (Jaccard) that makes two questions about one document the same
    max_document_tokens: int | None = None

    def __post_init__(self) -> None:
        require("be at least 1", window=self.window, questions=self.questions, reply_tokens=self.reply_tokens)
        require("be at least 1", notes_tokens=self.notes_tokens, tries=self.tries)
        require("be at least 1", max_document_tokens=self.max_document_tokens)
        require("not be negative", ask_sections=self.ask_sections, temperature=self.temperature, seed=self.seed)
        require("be above 0 and at most 1", quote_similarity=self.quote_similarity)
        require("be above 0 and at most 1", duplicate_similarity=self.duplicate_similarity)
        require("be above 0", chars_per_token=self.chars_per_token)


@dataclass
class Spent:
    """Tokens read and written by the model."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Add to the counts."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens


@dataclass(frozen=True, kw_only=True)
class Sending:
    """How calls are sent; none of this changes a record, and all of it may differ from run to run.

    Raises:
        ConfigError: a value is out of range, or the cost is limited but the prices are unknown.
    """

    max_tokens: int | None = None  # for all runs of a set together, like `max_cost`
    max_cost: float | None = None
    price_in: float | None = None  # of a million tokens read, in any currency
    price_out: float | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int = 8  # calls in progress at once

    def __post_init__(self) -> None:
        require("be above 0", max_tokens=self.max_tokens, max_cost=self.max_cost)
        require("be above 0", requests_per_minute=self.requests_per_minute, tokens_per_minute=self.tokens_per_minute)
        require("not be negative", price_in=self.price_in, price_out=self.price_out)
        require("be at least 1", concurrency=self.concurrency)
        if (self.price_in is None) != (self.price_out is None):
            raise ConfigError("--price-in and --price-out must be given together; 0 is allowed")
        if self.max_cost is not None and self.price_in is None:
            raise ConfigError(f"--max-cost {self.max_cost} needs --price-in and --price-out")

    def cost(self, tokens: Spent) -> float | None:
        """Return the cost of these tokens; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens.prompt_tokens * self.price_in + tokens.completion_tokens * self.price_out) / 1e6

    def allows(self, tokens: Spent) -> bool:
        """Return whether a total of these tokens is within the limits."""
        if self.max_tokens is not None and tokens.prompt_tokens + tokens.completion_tokens > self.max_tokens:
            return False
        return self.max_cost is None or (self.cost(tokens) or 0) <= self.max_cost

    def minimum_seconds(self, num_requests: int, num_tokens: int) -> float:
        """Return the shortest time in which the rate limits allow so much to be sent."""
        by_request = 60 * num_requests / self.requests_per_minute if self.requests_per_minute else 0.0
        by_token = 60 * num_tokens / self.tokens_per_minute if self.tokens_per_minute else 0.0
        return max(by_request, by_token)
