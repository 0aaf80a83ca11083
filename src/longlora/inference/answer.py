"""Stream one answer while the model generates it, with a stop at any token."""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from queue import SimpleQueue

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

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


class _Tokens(SimpleQueue[Tensor | None]):
    """Passes tokens from `generate`, as its streamer, to an iterator in another thread."""

    def end(self) -> None:
        """Mark the end of the tokens."""
        self.put(None)

    def __iter__(self) -> Iterator[int]:
        for token in islice(iter(self.get, None), 1, None):  # each (1,), after the prompt, (1, T)
            yield int(token)


@dataclass(eq=False)
class StreamedAnswer:
    """An answer in progress: iterate over it for the text, and read its numbers afterwards.

    `generate` runs in its own thread. Setting `stopping` ends it after the current token, with the memory in a
    consistent state; so does abandoning the iteration.
    """

    chat_model: ChatModel
    prompt: list[int]
    memory: Memory
    settings: ChatSettings
    _: KW_ONLY
    max_new_tokens: int
    progress: Progress | None = None

    stopping: threading.Event = field(default_factory=threading.Event, init=False)  # set it to end at the next token
    text: str = field(default="", init=False)
    num_reused: int = field(default=0, init=False)  # prompt tokens already in memory
    num_read: int = field(default=0, init=False)  # prompt tokens read now
    num_written: int = field(default=0, init=False)  # tokens of the answer
    seconds_to_first_token: float | None = field(default=None, init=False)
    seconds: float = field(default=0.0, init=False)  # from the question to the end of the answer
    finished: bool = field(default=False, init=False)  # whether the model ended the answer itself

    @property
    def stopped(self) -> bool:
        """Whether the answer was stopped."""
        return self.stopping.is_set()

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
                for piece in text_pieces(self.chat_model.tokenizer, self.prompt, timed()):
                    self.text += piece
                    yield piece
            except BaseException:  # abandoned: an interrupt, a closed page
                self.stopping.set()
                raise
        self.seconds = time.perf_counter() - began
        generation.result()  # raises the error of the thread, if any

    def _generate(self, tokens: _Tokens) -> None:
        memory, model, tokenizer = self.memory, self.chat_model.model, self.chat_model.tokenizer
        self.num_reused = memory.begin(self.prompt)
        self.num_read = memory.read(self.prompt[self.num_reused : -1], stop=self.stopping, progress=self.progress)
        memory.note(self.prompt)
        if self.stopped:
            return
        temperature, top_p = self.settings.temperature, self.settings.top_p
        settings = plain_settings(
            model, tokenizer, max_new_tokens=self.max_new_tokens, temperature=temperature, top_p=top_p
        )
        mask = torch.ones(1, memory.cache.get_seq_length() + 1, dtype=torch.long, device=model.device)
        try:
            with plain_generation(model):
                # generate gets the last token, and a mask that covers everything read before it.
                output = model.generate(
                    input_ids=torch.tensor([self.prompt[-1:]], device=model.device),
                    attention_mask=mask,
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
        memory.note([*self.prompt, *output[1:]])
