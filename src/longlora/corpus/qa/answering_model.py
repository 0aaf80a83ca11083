"""Choose the answering model, its window and its token counter."""

import asyncio
import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from longlora.corpus.qa.asking import Answerer, Begin
from longlora.corpus.qa.calls import Answer, Call, UnansweredError
from longlora.corpus.qa.chunks import EstimatedTokens, TokenCounter, TokenizerTokens
from longlora.errors import ConfigError

logger = logging.getLogger("longlora")


@dataclass(frozen=True, kw_only=True)
class AnsweringModel:
    """An answering model with its window and token counter."""

    name: str
    window: int  # tokens
    tokenizer: str | None  # name of the tokenizer that counts tokens; None if they are estimated from characters
    counter: TokenCounter
    answerer: Answerer | None  # None if nothing is to be asked


def choose_model(
    *,
    model: str,
    base_url: str | None,
    local: str,
    window: int | None,
    tokenizer: str | None,
    chars_per_token: float = 3.0,
    timeout_seconds: float = 600.0,
    attempts: int = 6,
    is_asked: bool = True,
) -> AnsweringModel:
    """Return the answering model that the user chose: one on a server, or one in this process.

    Raises:
        ConfigError: neither or both were given, the window is unknown, or the openai package is missing.
        CheckpointError: the local model or the tokenizer cannot be loaded.
    """
    if bool(model) == bool(local):
        found = "both" if model else "neither"
        raise ConfigError(f"give one answering model, --model NAME on a server or --local MODEL; found {found}")
    if local:
        if base_url or tokenizer:
            raise ConfigError(
                "--local MODEL runs in this process with its own tokenizer: no --base-url, no --tokenizer"
            )
        return _local_model(local, window, is_asked=is_asked)
    if window is None:
        raise ConfigError(
            "--window must be the number of tokens that the answering model reads and writes in one call (for vLLM its "
            "--max-model-len); a server does not report it"
        )
    answerer = None
    if is_asked:
        if find_spec("openai") is None:
            raise ConfigError("asking a server needs the openai package: pip install 'longlora[corpus]'")
        from longlora.corpus.qa.endpoint import Endpoint

        answerer = Endpoint(base_url=base_url, timeout_seconds=timeout_seconds, attempts=attempts)
    counter: TokenCounter = EstimatedTokens(chars_per_token)
    if tokenizer is not None:
        from longlora.models.load import load_tokenizer, model_source

        counter = TokenizerTokens(load_tokenizer(model_source(tokenizer)), name=tokenizer)
    return AnsweringModel(name=model, window=window, tokenizer=tokenizer, counter=counter, answerer=answerer)


def _local_model(local: str, window: int | None, *, is_asked: bool) -> AnsweringModel:
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


class LocalModel:
    """A model in this process, which answers through its chat template and transformers' generation.

    It answers one call at a time, in a thread, so that Ctrl-C still works.
    """

    def __init__(self, name: str) -> None:
        from longlora.models.chat_template import ensure_chat_template
        from longlora.models.load import load_for_inference

        self._model, self.tokenizer = load_for_inference(name)
        if ensure_chat_template(self.tokenizer):
            logger.warning("%s has no chat template and is asked with the paper's [INST] prompt", name)
        self._turn = asyncio.Lock()
        self._is_closed = False

    @property
    def positions(self) -> int | None:
        """The model's context length in tokens, from its configuration."""
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    async def answer(self, call: Call, begin: Begin) -> None:
        """Answer a call; see `asking.Answerer` for the errors."""
        async with self._turn, begin() as attempt:
            attempt.may_be_charged = False
            attempt.answer = await asyncio.to_thread(self.generate, call)

    async def close(self) -> None:
        """Stop a running generation."""
        self._is_closed = True

    def generate(self, call: Call) -> Answer:
        """Generate an answer.

        Raises:
            UnansweredError: the prompt does not fit into GPU memory.
        """
        import torch
        from transformers import StoppingCriteriaList

        from longlora.models.generation import plain_generation, plain_settings

        inputs = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": call.prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            tokenizer_kwargs={"verbose": False},  # the window was checked before
        ).to(self._model.device)
        prompt_tokens = inputs["input_ids"].shape[1]
        settings = plain_settings(
            self._model, self.tokenizer, max_new_tokens=call.max_tokens, temperature=call.temperature
        )
        try:
            with torch.random.fork_rng(), plain_generation(self._model):
                torch.manual_seed(call.seed)
                output = self._model.generate(
                    **inputs, generation_config=settings, stopping_criteria=StoppingCriteriaList([self._closed])
                )
        except torch.cuda.OutOfMemoryError as error:
            raise UnansweredError(f"a prompt of {prompt_tokens} tokens does not fit into GPU memory") from error
        new = output[0, prompt_tokens:]
        return Answer(
            text=self.tokenizer.decode(new, skip_special_tokens=True),
            finish="length" if len(new) >= call.max_tokens else "stop",
            prompt_tokens=prompt_tokens,
            completion_tokens=len(new),
            model=call.model,
        )

    def _closed(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return input_ids.new_full((input_ids.shape[0],), self._is_closed).bool()
