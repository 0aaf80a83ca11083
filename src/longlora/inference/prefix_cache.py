"""What a model has read of a conversation: its tokens, and their keys and values, in memory and on disk."""

import hashlib
import json
import logging
import re
import threading
import zlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from longlora.errors import ConfigError
from longlora.inference.chat_model import ChatModel, ChatSettings
from longlora.inference.streaming_cache import KeyRotation, StreamingCache, key_rotations
from longlora.support.files import replaced_file

logger = logging.getLogger("longlora")

PIECE_TOKENS = 2048  # of a forward pass while reading: bounds the memory of activations
_SAMPLES = 16  # values of each weight that enter a model's fingerprint, evenly spread
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


class SavedReadings:
    """A folder with a file for each document, model and dtype.

    A file is used if it was made by the very same model (`fingerprint`) from the same tokens; if not, or if it is
    damaged, the document is read again and the file replaced.
    """

    def __init__(self, folder: Path, model_name: str) -> None:
        self._folder = folder
        # Resolved, so that `.` and `runs/mine/adapter/` name the same file as the path written out.
        self._model_name = re.sub(r"[^\w.-]+", "-", Path(model_name).expanduser().resolve().name) or "model"

    def load(self, tokens: Sequence[int], model: PreTrainedModel | PeftModel) -> tuple[DynamicCache | None, list[str]]:
        """Fetch what was read of these tokens, if it is there and good; and what there is to tell."""
        path = self._path(tokens, model)
        if not path.exists():
            return None, []
        try:
            with safe_open(path, framework="pt") as file:
                label = file.metadata() or {}
                if label.get("fingerprint") != fingerprint(model):
                    return None, [f"{path} was read by another model or version: reading the document again"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
        except (OSError, SafetensorError) as error:
            return None, [f"{path} is damaged ({error}): reading the document again"]
        num_layers = len(tensors) // 2
        is_whole = num_layers > 0 and all(
            f"{kind}.{index}" in tensors and tensors[f"{kind}.{index}"].shape[2] == len(tokens)
            for kind in ("keys", "values")
            for index in range(num_layers)
        )
        if not is_whole or label.get("checksum") != _checksum(tensors):
            return None, [f"{path} is damaged (its checksum differs): reading the document again"]
        cache = DynamicCache(config=model.config)
        for index in range(num_layers):
            cache.update(tensors[f"keys.{index}"].to(model.device), tensors[f"values.{index}"].to(model.device), index)
        return cache, [f"{len(tokens):,} tokens fetched from {path}"]

    def save(self, tokens: Sequence[int], cache: Cache, model: PreTrainedModel | PeftModel) -> list[str]:
        """Keep what was read of these tokens; and what there is to tell."""
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            return ["this model keeps more than keys and values of all tokens: its reading cannot be kept on disk"]
        tensors = {}
        for index, layer in enumerate(cache.layers):
            tensors[f"keys.{index}"] = layer.keys.to("cpu").contiguous()
            tensors[f"values.{index}"] = layer.values.to("cpu").contiguous()
        label = {
            "fingerprint": fingerprint(model),
            "checksum": _checksum(tensors),
            "num_tokens": str(len(tokens)),
            "format": "longlora keys and values 1",
        }
        path = self._path(tokens, model)
        self._folder.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as temporary:
            save_file(tensors, temporary, metadata=label)
        return [f"kept in {path} ({path.stat().st_size / 2**20:,.1f} MiB)"]

    def _path(self, tokens: Sequence[int], model: PreTrainedModel | PeftModel) -> Path:
        text = hashlib.sha256(json.dumps(list(tokens)).encode()).hexdigest()[:16]
        return self._folder / f"{self._model_name}-{str(model.dtype).removeprefix('torch.')}-{text}.safetensors"


def fingerprint(model: PreTrainedModel | PeftModel) -> str:
    """What a model is, wherever it is stored: its configuration and a sample of each of its weights."""
    digest = hashlib.sha256(json.dumps(_without_paths(model.config.to_dict()), sort_keys=True, default=str).encode())
    digest.update(f"transformers {version('transformers')}".encode())
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLES)].to("cpu").contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes() if sample.numel() else b"")
    return digest.hexdigest()


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out how the model's path was written, which transformers notes in a configuration and those within it."""
    return {
        name: _without_paths(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name != "_name_or_path"
    }


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def memory_for(model: ChatModel, settings: ChatSettings) -> Callable[[], Memory]:
    """Choose how conversations remember, and give what makes a memory for each.

    Raises:
        ConfigError: a streaming window is larger than what the model reads, or the model cannot stream.
    """
    window = settings.stream_window
    if window is None:
        return lambda: WholeMemory(model.model)
    if window > model.context:
        raise ConfigError(
            f"a streaming window of {window:,} tokens is more than {model.name} reads ({model.context:,}): set it "
            "to that or less"
        )
    rotations = key_rotations(model.model)
    StreamingMemory(rotations, window)  # so that a size that cannot be is refused now
    return lambda: StreamingMemory(rotations, window)


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
