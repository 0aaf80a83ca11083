"""A model in this process, asked by transformers' generation through its chat template."""

import asyncio
import logging
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from longlora.corpus.qa.asking import Attempt
from longlora.corpus.qa.calls import Answer, Call, UnansweredError
from longlora.models.chat_template import ensure_chat_template
from longlora.models.generation import plain_generation, plain_settings
from longlora.models.load import load_for_inference
from longlora.support.choices import DtypeName

logger = logging.getLogger("longlora")


class LocalModel:
    """Answers one call at a time, in a thread, so that Ctrl-C is heard."""

    def __init__(self, name: str, *, dtype: DtypeName = "auto", device: str | None = None) -> None:
        self._model, self.tokenizer = load_for_inference(name, dtype=dtype, device=device)
        if ensure_chat_template(self.tokenizer):
            logger.warning("%s has no chat template and is asked with the paper's [INST] prompt", name)
        self._turn = asyncio.Lock()
        self._is_closed = False

    @property
    def positions(self) -> int | None:
        """Tokens that the model reads, as its configuration says."""
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    async def answer(self, call: Call, attempt: Attempt) -> Answer:
        """Generate an answer; see `asking.Answerer` for what it raises."""
        async with self._turn:
            await attempt.begin()
            return await asyncio.to_thread(self._generate, call)

    async def close(self) -> None:
        """End a generation that is under way."""
        self._is_closed = True

    def _generate(self, call: Call) -> Answer:
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
                    stopping_criteria=StoppingCriteriaList([_Closed(self)]),
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


class _Closed(StoppingCriteria):
    def __init__(self, owner: LocalModel) -> None:
        self._owner = owner

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._owner._is_closed, device=input_ids.device)
