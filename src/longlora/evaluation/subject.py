"""The model under evaluation: loading it by name, identifying it by its weights, and finding its base."""

import hashlib
import platform
import re
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from transformers import PreTrainedTokenizerBase

from longlora.distributed import Processes
from longlora.errors import ConfigError
from longlora.evaluation.logits import Model
from longlora.models.directories import base_model_of, is_adapter, read_extension
from longlora.models.generation import transformers_model
from longlora.models.load import DtypeName, apply_extension, load_config, load_for_inference, model_source
from longlora.models.positions import readable_context
from longlora.support.machine import package_versions


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How to load a model; the fields are arguments of `load_for_inference`."""

    device_map: str | None = None
    dtype: DtypeName = "auto"


AS_IT_IS = Loading()


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model under evaluation, with its tokenizer and its name in the results."""

    name: str
    model: Model
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def weights(self) -> str:
        """A digest of the weights (`model_identity`)."""
        return model_identity(self.model)

    @property
    def context(self) -> int:
        """The model's context length in tokens, according to its configuration."""
        return readable_context(transformers_model(self.model).config)

    def about(self) -> dict[str, Any]:
        """Return the fields common to all results: the model and the provenance."""
        return {"model": self.name, "weights": self.weights, "context": self.context, "provenance": provenance()}


def load_subject(name: str, loading: Loading, processes: Processes | None = None) -> Subject:
    """Load a model by name, on this process's device if there are several processes.

    Raises:
        CheckpointError: the model cannot be loaded.
        ConfigError: `device_map` is set and there are several processes.
    """
    if loading.device_map and processes and processes.count > 1:
        raise ConfigError(
            f"--device-map {loading.device_map} spreads one model over all devices, but {processes.count} processes "
            "would each do so: start a single process"
        )
    device = processes.device if processes else None
    model, tokenizer = load_for_inference(name, dtype=loading.dtype, device=device, device_map=loading.device_map)
    return Subject(name=name, model=model, tokenizer=tokenizer)


def folder_name(model: str) -> str:
    """Turn a model's name into a folder name: the last three parts of its path."""
    parts = [part for part in Path(model).parts if part not in ("/", ".", "..")]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts[-3:])) or "model"


def base_of(model_name: str) -> str | None:
    """Return the name of an adapter's base model; None if the model is not an adapter.

    Raises:
        CheckpointError: there is no such model.
    """
    directory = Path(model_source(model_name))
    return base_model_of(directory) if is_adapter(directory) else None


def named_context(model_name: str) -> int:
    """Return a model's context length in tokens without loading its weights.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: its configuration does not specify one.
    """
    config = load_config(model_source(base_of(model_name) or model_name))
    extension = read_extension(Path(model_source(model_name)))
    if extension is not None:
        apply_extension(config, extension)
    return readable_context(config)


def model_identity(model: Model) -> str:
    """Return a digest of a model's positions and of 256 evenly spaced values of every parameter.

    It changes if the model is trained further under the same name or loaded in another dtype, and takes seconds for
    70 B parameters.
    """
    config = transformers_model(model).config.get_text_config()
    positions = {name: config.to_dict().get(name) for name in ("max_position_embeddings", "rope_parameters")}
    digest = hashlib.sha256(repr(positions).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        owner, _, own_name = name.rpartition(".")
        # Loads parameters that accelerate has offloaded.
        with align_module_device(model.get_submodule(owner)):
            values = model.get_submodule(owner).get_parameter(own_name).detach().flatten()
            places = np.linspace(0, len(values) - 1, min(256, len(values))).astype(np.int64)
            digest.update(values[torch.from_numpy(places).to(values.device)].cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of a tokenizer's output on a sample text, its special tokens and its chat template."""
    probe = "The pass key is 9072. Amber falcon,\n USER: élan 日本 {}[] 318465"
    parts = [tokenizer(probe)["input_ids"], len(tokenizer), tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def provenance(command: str | None = None) -> dict[str, Any]:
    """Return the date, the command, the device and the package versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    packages = package_versions("longlora", "torch", "transformers", "peft", "tokenizers")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command or shlex.join(["longlora", *sys.argv[1:]]),
        "device": device,
        "python": platform.python_version(),
        "packages": packages | {"numpy": np.__version__},
    }
