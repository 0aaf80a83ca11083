"""A model in this process, asked by transformers' generation through its chat template."""

import asyncio
import logging
from typing import Any

import torch
from transformers import StoppingCriteriaList

from longlora.corpus.qa.asking import Begin
from longlora.corpus.qa.calls import Answer, Call, UnansweredError
from longlora.models.chat_template import ensure_chat_template
from longlora.models.generation import plain_generation, plain_settings
from longlora.models.load import load_for_inference

logger = logging.getLogger("longlora")


class LocalModel:
    """Answers one call at a time, in a thread, so that Ctrl-C is heard."""

    def __init__(self, name: str) -> None:
        self._model, self.tokenizer = load_for_inference(name)
        if ensure_chat_template(self.tokenizer):
            logger.warning("%s has no chat template and is asked with the paper's [INST] prompt", name)
        self._turn = asyncio.Lock()
        self._is_closed = False

    @property
    def positions(self) -> int | None:
        """Tokens that the model reads, as its configuration says."""
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    async def answer(self, call: Call, begin: Begin) -> None:
        """Let the model answer; see `asking.Answerer` for what it raises."""
        async with self._turn, begin() as attempt:
            attempt.may_be_charged = False
            attempt.answer = await asyncio.to_thread(self.generate, call)

    async def close(self) -> None:
        """End a generation that is under way."""
        self._is_closed = True

    def generate(self, call: Call) -> Answer:
        """Generate an answer.

        Raises:
            UnansweredError: the prompt does not fit the GPU's memory.
        """
        inputs = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": call.prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            tokenizer_kwargs={"verbose": False},  # whether the window is right was looked at before
        ).to(self._model.device)
        prompt_tokens = inputs["input_ids"].shape[1]
        settings = plain_settings(
            self._model, self.tokenizer, max_new_tokens=call.max_tokens, temperature=call.temperature
        )
        try:
            with torch.random.fork_rng(), plain_generation(self._model):
                torch.manual_seed(call.seed)
                output = self._model.generate(
                    **inputs,
                    generation_config=settings,
                    stopping_criteria=StoppingCriteriaList([self._closed]),
                )
        except torch.cuda.OutOfMemoryError as error:
            raise UnansweredError(f"a prompt of {prompt_tokens} tokens does not fit the GPU's memory") from error
        new = output[0, prompt_tokens:]
        return Answer(
            text=self.tokenizer.decode(new, skip_special_tokens=True),
            finish="length" if len(new) >= call.max_tokens else "stop",
            prompt_tokens=prompt_tokens,
            completion_tokens=len(new),
            model=call.model,
        )

    def _closed(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._is_closed, device=input_ids.device)
