"""What a model has read of a conversation: its tokens, and their keys and values."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from peft import PeftModel
from transformers import Cache, DynamicCache, PreTrainedModel

from longlora.inference.streaming_cache import KeyRotation, StreamingCache

logger = logging.getLogger("longlora")

PIECE_TOKENS = 2048  # of a forward pass while reading: bounds the memory of activations
Progress = Callable[[int, int], None]  # tokens read, tokens to read


class Memory(Protocol):
    """Keys and values of what has been read, and how a conversation goes on from there."""

    cache: Cache

    def begin(self, prompt: Sequence[int]) -> int:
        """Make ready for a prompt, and tell how many of its tokens have been read already; one is always left."""

    def note(self, tokens: Sequence[int]) -> None:
        """Take note of all tokens that the prompt and the answer were made of."""

    @property
    def piece(self) -> int:
        """Tokens that may be read at once."""


class WholeMemory:
    """Remembers every token. A prompt that begins like the one before is read only from where it differs."""

    piece = PIECE_TOKENS

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        self._config = model.config
        self.cache = DynamicCache(config=self._config)
        self.tokens: list[int] = []

    def begin(self, prompt: Sequence[int]) -> int:
        """Forget what the prompt does not begin with; see `Memory`."""
        shared = min(shared_prefix(self.tokens, prompt), len(prompt) - 1)
        surplus = len(self.tokens) - shared
        if surplus and not self._crop(surplus):
            logger.warning("this model's cache cannot go back, so the whole conversation is read again")
            self.put([], DynamicCache(config=self._config))
            return 0
        self.tokens = list(prompt[:shared])
        return shared

    def note(self, tokens: Sequence[int]) -> None:
        """See `Memory`; the last token of an answer has not been read yet."""
        self.tokens = list(tokens[: self.cache.get_seq_length()])

    def put(self, tokens: Sequence[int], cache: DynamicCache) -> None:
        """Replace everything."""
        self.tokens, self.cache = list(tokens), cache

    def _crop(self, surplus: int) -> bool:
        """Forget the last tokens; layers with a window or a state of their own may be unable to."""
        if not self.cache.is_croppable:
            return False
        try:
            self.cache.crop(-surplus)
        except RuntimeError:  # a sliding window that has let go of what would come back
            return False
        return True


class StreamingMemory:
    """Remembers the first tokens and the latest ones, however long the conversation gets."""

    def __init__(self, rotations: Sequence[KeyRotation], window: int) -> None:
        self._rotations = rotations
        self._window = window
        self.piece = min(PIECE_TOKENS, max(1, window // 8))  # in larger pieces the first tokens would see too little
        self.cache = StreamingCache(rotations, window=window)

    def begin(self, prompt: Sequence[int]) -> int:
        """Count positions anew if they have grown large; a prompt here is what comes new, and none of it was read."""
        self.cache.rebase()
        return 0

    def note(self, tokens: Sequence[int]) -> None:
        """There is nothing to note: the cache goes on from where it is."""

    def forget(self) -> None:
        """Begin anew."""
        self.cache = StreamingCache(self._rotations, window=self._window)


def shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    for index, (first, second) in enumerate(zip(one, other, strict=False)):
        if first != second:
            return index
    return min(len(one), len(other))


@torch.no_grad()
def read_tokens(
    model: PreTrainedModel | PeftModel,
    tokens: Sequence[int],
    memory: Memory,
    *,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
) -> int:
    """Read tokens into a memory in pieces, and return how many were read: all, unless `stop` was set between two."""
    decoder = (model.get_base_model() if isinstance(model, PeftModel) else model).get_decoder()  # needs no logits
    for begin in range(0, len(tokens), memory.piece):
        if stop is not None and stop.is_set():
            return begin
        piece = torch.tensor([list(tokens[begin : begin + memory.piece])], device=model.device)
        decoder(input_ids=piece, past_key_values=memory.cache, use_cache=True)
        if progress is not None:
            progress(begin + piece.shape[1], len(tokens))
    return len(tokens)
