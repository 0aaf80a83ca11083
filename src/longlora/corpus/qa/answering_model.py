"""Which model answers, how long its window is, and what counts its tokens."""

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from longlora.corpus.qa.asking import Answerer
from longlora.corpus.qa.chunks import EstimatedTokens, TokenCounter, TokenizerTokens
from longlora.errors import ConfigError

logger = logging.getLogger("longlora")


@dataclass(frozen=True, kw_only=True)
class AnsweringModel:
    """A model to ask, and its measures."""

    name: str
    window: int  # tokens
    tokenizer: str | None  # name of what counts the tokens; None where characters do
    counter: TokenCounter
    answerer: Answerer | None  # None where nothing is to be asked


def choose_model(
    *,
    model: str,
    base_url: str | None,
    local: str,
    window: int | None,
    tokenizer: str | None,
    chars_per_token: float,
    timeout_seconds: float,
    attempts: int = 6,
    is_asked: bool = True,
) -> AnsweringModel:
    """Open what a user named: a model at a server, or one in this process.

    Raises:
        ConfigError: neither or both were named, the window is not known, or the openai package is missing.
        CheckpointError: the local model, or the tokenizer, cannot be loaded.
    """
    if bool(model) == bool(local):
        found = "both" if model else "neither"
        raise ConfigError(f"name one answering model, --model NAME at a server or --local MODEL; found {found}")
    if local:
        if base_url or tokenizer:
            raise ConfigError(
                "--local MODEL runs in this process with its own tokenizer: no --base-url, no --tokenizer"
            )
        return _local_model(local, window, is_asked=is_asked)
    if window is None:
        raise ConfigError(
            "--window must say how many tokens the answering model reads and writes in one call (for vLLM its "
            "--max-model-len); a server does not tell"
        )
    answerer = None
    if is_asked:
        if find_spec("openai") is None:
            raise ConfigError("asking a server needs the openai package: pip install 'longlora[corpus]'")
        from longlora.corpus.qa.endpoint import Endpoint

        answerer = Endpoint(base_url=base_url, timeout_seconds=timeout_seconds, attempts=attempts)
    counter = EstimatedTokens(chars_per_token) if tokenizer is None else _tokenizer(tokenizer)
    return AnsweringModel(name=model, window=window, tokenizer=tokenizer, counter=counter, answerer=answerer)


def _local_model(local: str, window: int | None, *, is_asked: bool) -> AnsweringModel:
    from longlora.corpus.qa.local_model import LocalModel

    opened = LocalModel(local)
    if window is None and opened.positions is None:
        raise ConfigError(f"the configuration of {local!r} does not say how many tokens it reads; give --window")
    if window and opened.positions and window > opened.positions:
        logger.warning("--window %d is more than the %d tokens that %s reads", window, opened.positions, local)
    return AnsweringModel(
        name=Path(local).name,
        window=window or opened.positions or 0,
        tokenizer=Path(local).name,
        counter=TokenizerTokens(opened.tokenizer, name=local),
        answerer=opened if is_asked else None,
    )


def _tokenizer(name: str) -> TokenizerTokens:
    from longlora.models.load import load_tokenizer, model_source

    return TokenizerTokens(load_tokenizer(model_source(name)), name=name)
