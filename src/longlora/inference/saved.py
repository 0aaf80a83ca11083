"""Keys and values of a document, kept on disk: read once, asked about on many days."""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

_SAMPLES = 16  # values of each weight that enter a model's fingerprint, evenly spread


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
        temporary = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            save_file(tensors, temporary, metadata=label)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
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
