"""Where a result comes from: which weights, which versions, when, by which command."""

import hashlib
import platform
import shlex
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from transformers import PreTrainedTokenizerBase

from longlora.evaluation.logits import Model, base_model
from longlora.support.packages import package_versions

_VALUES_PER_PARAMETER = 256


def model_identity(model: Model) -> str:
    """Digest of a model's positions and of 256 values of every parameter, spread evenly.

    It changes when a model is trained on under the same name, in another dtype too, and takes seconds for 70 B
    parameters.
    """
    config = base_model(model).config.get_text_config()
    positions = {name: config.to_dict().get(name) for name in ("max_position_embeddings", "rope_parameters")}
    digest = hashlib.sha256(repr(positions).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        owner, _, own_name = name.rpartition(".")
        # Brings back parts that accelerate keeps outside of the devices until their turn comes.
        with align_module_device(model.get_submodule(owner)):
            values = model.get_submodule(owner).get_parameter(own_name).detach().flatten()
            places = np.linspace(0, len(values) - 1, min(_VALUES_PER_PARAMETER, len(values))).astype(np.int64)
            digest.update(values[torch.from_numpy(places).to(values.device)].cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of what a tokenizer makes of a few texts, its special tokens and its chat template."""
    probe = "The pass key is 9072. Amber falcon,\n USER: élan 日本 {}[] 318465"
    parts = [tokenizer(probe)["input_ids"], len(tokenizer), tokenizer.special_tokens_map, tokenizer.chat_template]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def provenance(command: str | None = None) -> dict[str, Any]:
    """Describe this moment, this machine and these versions."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    packages = package_versions("longlora", "torch", "transformers", "peft", "tokenizers")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command or shlex.join(["longlora", *sys.argv[1:]]),
        "device": device,
        "python": platform.python_version(),
        "packages": packages | {"numpy": np.__version__},
    }
