"""What a model has read of a conversation: tokens, keys and values, in memory and on disk."""

import hashlib
import json
import logging
import re
import threading
import zlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from longlora.errors import ConfigError
from longlora.inference.chat_model import ChatModel
from longlora.inference.streaming_cache import StreamingCache
from longlora.models.generation import transformers_model
from longlora.support.files import replaced_file

logger = logging.getLogger("longlora")

PIECE_TOKENS = 2048  # per forward pass while reading: bounds the memory of activations
_SAMPLES = 16  # evenly spread values of each weight in a model's fingerprint
Progress = Callable[[int, int], None]  # tokens read, tokens to read


class Memory:
    """Keys and values of what has been read.

    A prompt that starts like the previous one is read only from where it differs. With a `window`, only the first
    tokens and the latest ones are kept, `window` in all, and a prompt is only what is new.

    Raises:
        ConfigError: the window is larger than the model's context or too small, or the model cannot stream.
    """

    def __init__(self, chat_model: ChatModel, window: int | None = None) -> None:
        self._model, self._window = chat_model.model, window
        self._piece = PIECE_TOKENS
        if window is not None:
            if window > chat_model.context:
                raise ConfigError(
                    f"a streaming window of {window:,} tokens is more than {chat_model.name} reads "
                    f"({chat_model.context:,}): set it to that or less"
                )
            self._rotations = chat_model.key_rotations
            self._piece = min(PIECE_TOKENS, max(1, window // 8))  # in larger ones the first tokens would see too little
        self.forget()

    def forget(self) -> None:
        """Drop everything read so far."""
        self.tokens: list[int] = []  # whose keys and values are cached; unused with a window
        self.cache: Cache = (
            DynamicCache(config=self._model.config)
            if self._window is None
            else StreamingCache(self._rotations, window=self._window)
        )

    def begin(self, prompt: Sequence[int]) -> int:
        """Prepare for a prompt, and return how many of its tokens are already read; at least one is always left."""
        if isinstance(self.cache, StreamingCache):
            self.cache.rebase()
            return 0
        shared = min(shared_prefix(self.tokens, prompt), len(prompt) - 1)
        if shared < len(self.tokens) and not self._crop(len(self.tokens) - shared):
            logger.warning("this model's cache cannot be rewound, so the whole conversation is read again")
            self.forget()
        self.tokens = self.tokens[:shared]
        return len(self.tokens)

    def _crop(self, surplus: int) -> bool:
        """Drop the last tokens; layers with their own window or state may be unable to."""
        if not self.cache.is_croppable:
            return False
        try:
            self.cache.crop(-surplus)
        except RuntimeError:  # a sliding window has dropped what would be needed again
            return False
        return True

    @torch.no_grad()
    def read(
        self, tokens: Sequence[int], *, stop: threading.Event | None = None, progress: Progress | None = None
    ) -> int:
        """Read tokens in pieces, and return how many were read: all, unless `stop` was set between two pieces."""
        decoder = transformers_model(self._model).get_decoder()  # needs no logits
        for begin in range(0, len(tokens), self._piece):
            if stop is not None and stop.is_set():
                return begin
            piece = torch.tensor([list(tokens[begin : begin + self._piece])], device=self._model.device)
            try:
                decoder(input_ids=piece, past_key_values=self.cache, use_cache=True)
            except BaseException:  # some layers have read the piece, others have not
                self.forget()
                raise
            if progress is not None:
                progress(begin + piece.shape[1], len(tokens))
        return len(tokens)

    def note(self, tokens: Sequence[int]) -> None:
        """Record the tokens of prompt and answer, of which the last ones may not have been read yet."""
        if self._window is None:
            self.tokens = list(tokens[: self.cache.get_seq_length()])


def shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of two token sequences."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (first, second) in pairs if first != second), min(len(one), len(other)))


class SavedReadings:
    """A folder with one file per document, model and dtype.

    A file is used only if the same model (`fingerprint`) made it from the same tokens; otherwise, or if it is damaged,
    the document is read again and the file replaced.
    """

    def __init__(self, folder: Path, model_name: str) -> None:
        self._folder = folder
        # Resolved, so `.` and `runs/mine/adapter/` give the same file as the full path.
        self._model_name = re.sub(r"[^\w.-]+", "-", Path(model_name).expanduser().resolve().name) or "model"

    def load(self, tokens: Sequence[int], model: PreTrainedModel | PeftModel) -> tuple[DynamicCache | None, list[str]]:
        """Load what was read of these tokens, if it is there and intact; also return notes for the user."""
        path = self._path(tokens, model)
        if not path.exists():
            return None, []
        try:
            with safe_open(path, framework="pt") as file:
                label, num_layers = file.metadata() or {}, len(file.keys()) // 2
                names = [f"{kind}.{index}" for kind in ("keys", "values") for index in range(num_layers)]
                tensors = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            return None, [f"{path} is damaged ({error}): reading the document again"]
        if label.get("fingerprint") != fingerprint(model):
            return None, [f"{path} is from another model or version: reading the document again"]
        if label.get("checksum") != _checksum(tensors):
            return None, [f"{path} is damaged (its checksum differs): reading the document again"]
        cache = DynamicCache(config=model.config)
        for index in range(num_layers):
            cache.update(tensors[f"keys.{index}"].to(model.device), tensors[f"values.{index}"].to(model.device), index)
        return cache, [f"{len(tokens):,} tokens loaded from {path}"]

    def save(self, tokens: Sequence[int], cache: Cache, model: PreTrainedModel | PeftModel) -> list[str]:
        """Save what was read of these tokens, and return notes for the user."""
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            return ["this model caches more than keys and values of all tokens, which cannot be saved to disk"]
        tensors = {
            f"{kind}.{index}": getattr(layer, kind).to("cpu").contiguous()
            for index, layer in enumerate(cache.layers)
            for kind in ("keys", "values")
        }
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
        return [f"saved to {path} ({path.stat().st_size / 2**20:,.1f} MiB)"]

    def _path(self, tokens: Sequence[int], model: PreTrainedModel | PeftModel) -> Path:
        text = hashlib.sha256(json.dumps(list(tokens)).encode()).hexdigest()[:16]
        return self._folder / f"{self._model_name}-{str(model.dtype).removeprefix('torch.')}-{text}.safetensors"


def fingerprint(model: PreTrainedModel | PeftModel) -> str:
    """Return a digest of a model's configuration and a sample of each weight, independent of where it is stored."""
    # Without the path that transformers records in a configuration and in nested ones.
    config = json.loads(
        json.dumps(model.config.to_dict(), default=str),
        object_hook=lambda values: {name: value for name, value in values.items() if name != "_name_or_path"},
    )
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update(f"transformers {version('transformers')}".encode())
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLES)].to("cpu").contiguous()
        digest.update(sample.view(torch.uint8).numpy().tobytes() if sample.numel() else b"")
    return digest.hexdigest()


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
