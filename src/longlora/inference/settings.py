"""How a conversation is held: plain values, the same for the terminal, a script and the web page."""

from dataclasses import dataclass

from longlora.errors import ConfigError

_ANSWER_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """What the user may choose.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_new_tokens: int | None = None
    """Longest answer, in tokens; so many are kept free in the context. None takes what `answer_length` says."""

    temperature: float = 0.0
    """0 takes the likeliest token each time; above that tokens are drawn, from flatter odds the higher it is."""

    top_p: float = 1.0
    """Draw only from the likeliest tokens that together have this probability."""

    system: str = ""
    """Message that opens every conversation; empty for none."""

    cut: bool = True
    """Whether a document that does not fit loses its middle; it is refused otherwise."""

    stream_window: int | None = None
    """Tokens that are seen at a time, by attention sinks and a recent window; None for all of them."""

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ConfigError(f"temperature must be 0 (the likeliest token) or above, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.top_p < 1 and self.temperature == 0:
            raise ConfigError("top_p has no meaning without a temperature: set temperature, 0.7 for one")

    def answer_length(self, context: int) -> int:
        """Longest answer of a model that reads so many tokens: as set, or 512, at most a quarter of the context.

        Raises:
            ConfigError: as set, it leaves no room for a question.
        """
        if self.max_new_tokens is None:
            return max(1, min(_ANSWER_TOKENS, context // 4))
        if self.max_new_tokens >= context:
            raise ConfigError(
                f"answers of {self.max_new_tokens:,} tokens leave no room for a question in a context of {context:,}; "
                "set max_new_tokens lower"
            )
        return self.max_new_tokens
