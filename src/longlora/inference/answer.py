"""One answer: written piece by piece while the model generates it, and stopped at any token."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from longlora.inference.chat_model import ChatModel, ChatSettings
from longlora.inference.prefix_cache import Memory, Progress, read_tokens
from longlora.models.generation import plain_generation, plain_settings

_BEFORE = 6  # tokens of the prompt that are decoded along


class TextPieces(BaseStreamer):
    """Takes tokens from `generate` in one thread and gives out text in another.

    Each piece is the difference of two texts that begin some tokens earlier, as in vLLM: what a decoder does at the
    beginning of a text, Llama 2's takes a space away, happens to both. (transformers' streamer begins a new text after
    each newline, and so loses the first space of every line; tokenizers' raises on some tokens of single bytes.) An
    answer begins in the prompt likewise, and keeps the space that stands between the two.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-_BEFORE:])
        self._begin, self._given = 0, len(self._tokens)  # of the text that is compared, and of what is not given out
        self._is_prompt = True
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def put(self, value: Tensor) -> None:
        """Take the next token, (1,); what comes first is the prompt, (1, T), which is left out."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self._tokens += value.flatten().tolist()
        new = self._new_text()
        if new and not new.endswith("�"):  # a character of several tokens is not there yet
            self._pieces.put(new)
            self._begin, self._given = self._given, len(self._tokens)

    def end(self) -> None:
        """Give out what is left."""
        if self._given < len(self._tokens):
            self._pieces.put(self._new_text())
            self._begin, self._given = self._given, len(self._tokens)

    def close(self) -> None:
        """End the text for who reads it."""
        self._pieces.put(None)

    def __iter__(self) -> Iterator[str]:
        """Give out pieces, none of them empty, until the text is closed."""
        return filter(None, iter(self._pieces.get, None))

    def _new_text(self) -> str:
        before = self._decode(self._tokens[self._begin : self._given])
        return self._decode(self._tokens[self._begin :])[len(before) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Answer:
    """An answer in the making; iterate over it for its text, and look at the numbers afterwards.

    `generate` runs in a thread of its own. `stop()` ends it after the token that it is at, with the memory in order;
    so does giving up the iteration.
    """

    def __init__(
        self,
        chat_model: ChatModel,
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
        self._model, self._tokenizer = chat_model.model, chat_model.tokenizer
        self._memory, self._settings = memory, settings
        self._prompt = list(prompt)
        self._max_new_tokens = max_new_tokens
        self._progress = progress
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._streamer = TextPieces(self._tokenizer, prompt)

    @property
    def stopped(self) -> bool:
        """Whether it was told to end."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End at the next token; may be called from anywhere."""
        self._stop.set()

    def summary(self) -> str:
        """What an answer took."""
        parts = [f"read {self.num_read:,} tokens"]
        if self.num_reused:
            parts.append(f"had {self.num_reused:,} in memory")
        if self.seconds_to_first_token is not None:
            parts.append(f"first word after {self.seconds_to_first_token:.1f} s")
            writing = self.seconds - self.seconds_to_first_token
            if self.num_written > 1 and writing > 0:
                parts.append(f"{(self.num_written - 1) / writing:,.0f} tokens/s")
        if self.stopped:
            parts.append("stopped")
        elif not self.finished:
            parts.append("cut off at the longest length allowed")
        return " · ".join(parts)

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
