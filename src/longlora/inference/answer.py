"""One answer: written piece by piece while the model generates it, and stopped at any token."""

import threading
import time
from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.inference.prefix_cache import Memory, Progress, read_tokens
from longlora.inference.settings import ChatSettings
from longlora.inference.token_text import TextPieces
from longlora.models.generation import plain_generation, plain_settings


class Answer:
    """An answer in the making; iterate over it for its text, and look at the numbers afterwards.

    `generate` runs in a thread of its own. `stop()` ends it after the token that it is at, with the memory in order;
    so does giving up the iteration.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Sequence[int],
        memory: Memory,
        settings: ChatSettings,
        *,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> None:
        self.text = ""
        self.num_reused = 0
        """Tokens of the prompt that had been read before."""
        self.num_read = 0
        """Tokens of the prompt that were read now."""
        self.num_written = 0
        """Tokens of the answer."""
        self.seconds_to_first_token: float | None = None
        self.seconds = 0.0
        """From the question to the end of the answer."""
        self.finished = False
        """Whether the model ended the answer by itself."""
        self._model, self._tokenizer, self._memory, self._settings = model, tokenizer, memory, settings
        self._prompt = list(prompt)
        self._max_new_tokens = max_new_tokens
        self._progress = progress
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._streamer = TextPieces(tokenizer, prompt)

    @property
    def stopped(self) -> bool:
        """Whether it was told to end."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End at the next token; may be called from anywhere."""
        self._stop.set()

    def __iter__(self) -> Iterator[str]:
        """Generate, and give out the text as it comes."""
        self._began = time.perf_counter()
        thread = threading.Thread(target=self._work, name="answer", daemon=True)
        thread.start()
        try:
            for piece in self._streamer:
                self.text += piece
                yield piece
        except BaseException:  # given up: an interrupt, a page that was closed
            self._stop.set()
            raise
        finally:
            thread.join()
            self.seconds = time.perf_counter() - self._began
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            self._generate()
        except BaseException as error:  # handed to whoever reads the answer
            self._error = error
        finally:
            self._streamer.close()

    def _generate(self) -> None:
        self.num_reused = self._memory.begin(self._prompt)
        to_read = self._prompt[self.num_reused : -1]
        self.num_read = read_tokens(self._model, to_read, self._memory, stop=self._stop, progress=self._progress)
        self._memory.note(self._prompt)
        if self.stopped:
            return
        # The last token is left for generate, with a mask that tells how much has been read before it.
        last = torch.tensor([self._prompt[-1:]], device=self._model.device)
        mask = torch.ones(1, self._memory.cache.get_seq_length() + 1, dtype=torch.long, device=self._model.device)
        settings = plain_settings(
            self._model,
            self._tokenizer,
            max_new_tokens=self._max_new_tokens,
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
        )
        with plain_generation(self._model):
            output = self._model.generate(
                input_ids=last,
                attention_mask=mask,
                past_key_values=self._memory.cache,
                generation_config=settings,
                stopping_criteria=[self._after_each_token],
                streamer=self._streamer,
            )[0].tolist()
        self.num_read += 1
        self.num_written = len(output) - 1
        self.finished = output[-1] in (settings.eos_token_id or ())
        if not self.finished:  # the last word has been said, but not read
            read_tokens(self._model, output[-1:], self._memory)
        self._memory.note([*self._prompt, *output[1:]])

    def _after_each_token(self, input_ids: Tensor, scores: object) -> Tensor:
        """One of transformers' stopping criteria: whether each row is done, (B,)."""
        if self.seconds_to_first_token is None:
            self.seconds_to_first_token = time.perf_counter() - self._began
        return torch.full((input_ids.shape[0],), self.stopped, device=input_ids.device)
