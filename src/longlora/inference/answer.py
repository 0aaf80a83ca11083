"""Stream one answer while the model generates it, with a stop at any token."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from longlora.inference.chat_model import ChatModel, ChatSettings
from longlora.inference.reading import Memory, Progress
from longlora.models.generation import plain_generation, plain_settings

_BEFORE = 6  # tokens of the prompt that are decoded with the answer


def text_pieces(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], answer: Iterable[int]) -> Iterator[str]:
    """Decode an answer's tokens, as they arrive, into non-empty pieces of text.

    Each piece is the difference of two texts that start some tokens earlier, as in vLLM: whatever a decoder does at the
    start of a text (Llama 2's removes a space) happens to both. (transformers' streamer starts a new text after each
    newline, and so loses the first space of every line; tokenizers' raises on some single-byte tokens.) The first piece
    starts within the prompt for the same reason, which keeps the space between prompt and answer.
    """

    def decode(part: Sequence[int]) -> str:
        return str(tokenizer.decode(part, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    tokens = list(prompt[-_BEFORE:])
    begin, given = 0, len(tokens)  # where the compared text starts, and the part not yielded yet
    new = ""
    for token in answer:
        tokens.append(token)
        new = decode(tokens[begin:])[len(decode(tokens[begin:given])) :]
        if new and not new.endswith("�"):  # a character of several tokens is still incomplete
            yield new
            begin, given, new = given, len(tokens), ""
    if new:
        yield new


class _Tokens(BaseStreamer):
    """Passes tokens from `generate` in one thread to an iterator in another."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        """Queue the next token, (1,); the first call brings the prompt, (1, T), which is skipped."""
        if not self._is_prompt:
            self._queue.put(value.flatten().tolist())
        self._is_prompt = False

    def end(self) -> None:
        """Mark the end of the tokens."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[int]:
        for tokens in iter(self._queue.get, None):
            yield from tokens


class Answer:
    """An answer in progress: iterate over it for the text, and read its numbers afterwards.

    `generate` runs in its own thread. `stop()` ends it after the current token, with the memory in a consistent state;
    so does abandoning the iteration.
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
        self.num_reused = self.num_read = 0  # prompt tokens already in memory, and read now
        self.num_written = 0  # tokens of the answer
        self.seconds_to_first_token: float | None = None
        self.seconds = 0.0  # from the question to the end of the answer
        self.finished = False  # whether the model ended the answer itself
        self._model, self._tokenizer = chat_model.model, chat_model.tokenizer
        self._prompt, self._memory, self._settings = list(prompt), memory, settings
        self._max_new_tokens, self._progress = max_new_tokens, progress
        self.stopping = threading.Event()  # set it, from any thread, to end at the next token

    @property
    def stopped(self) -> bool:
        """Whether the answer was stopped."""
        return self.stopping.is_set()

    def stop(self) -> None:
        """End at the next token; may be called from any thread."""
        self.stopping.set()

    def summary(self) -> str:
        """Summarize the tokens and the time that the answer took."""
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
            parts.append("cut off at the maximum length")
        return " · ".join(parts)

    def __iter__(self) -> Iterator[str]:
        """Generate the answer, and yield its text as it arrives."""
        began = time.perf_counter()
        tokens = _Tokens()

        def timed() -> Iterator[int]:
            for token in tokens:
                if self.seconds_to_first_token is None:
                    self.seconds_to_first_token = time.perf_counter() - began
                yield token

        with ThreadPoolExecutor(1, thread_name_prefix="answer") as thread:
            generation = thread.submit(self._generate, tokens)
            generation.add_done_callback(lambda _: tokens.end())  # after an error too
            try:
                for piece in text_pieces(self._tokenizer, self._prompt, timed()):
                    self.text += piece
                    yield piece
            except BaseException:  # abandoned: an interrupt, a closed page
                self.stop()
                raise
        self.seconds = time.perf_counter() - began
        generation.result()  # raises the error of the thread, if any

    def _generate(self, tokens: _Tokens) -> None:
        memory = self._memory
        self.num_reused = memory.begin(self._prompt)
        self.num_read = memory.read(self._prompt[self.num_reused : -1], stop=self.stopping, progress=self._progress)
        memory.note(self._prompt)
        if self.stopped:
            return
        settings = plain_settings(
            self._model,
            self._tokenizer,
            max_new_tokens=self._max_new_tokens,
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
        )
        device = self._model.device
        try:
            with plain_generation(self._model):
                # generate gets the last token, and a mask that covers everything read before it.
                output = self._model.generate(
                    input_ids=torch.tensor([self._prompt[-1:]], device=device),
                    attention_mask=torch.ones(1, memory.cache.get_seq_length() + 1, dtype=torch.long, device=device),
                    past_key_values=memory.cache,
                    generation_config=settings,
                    stopping_criteria=[lambda ids, _: torch.full((len(ids),), self.stopped, device=ids.device)],
                    streamer=tokens,
                )[0].tolist()
        except BaseException:  # some layers may have read a token that others have not
            memory.forget()
            raise
        self.num_read += 1
        self.num_written = len(output) - 1
        self.finished = output[-1] in (settings.eos_token_id or ())
        if not self.finished:  # the last token was generated, but not read
            memory.read(output[-1:])
        memory.note([*self._prompt, *output[1:]])
