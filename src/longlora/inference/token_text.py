"""The text of tokens as they come, such that its pieces together are the text of all of them."""

import queue
from collections.abc import Iterator, Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

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
