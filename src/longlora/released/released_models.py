"""The models that the authors released, as listed in their README (Yukang/… on the hub).

Contexts, in tokens, are from the README or the model's name; bases are from its table of pretrained weights. It does
not state the bases of instruction-tuned models, which `adapter_config.json` or the user must provide.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

OWNER = "Yukang"


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """One of the authors' hub repositories."""

    name: str
    kind: Literal["adapter", "model"]  # LoRA weights with embeddings and norms, or all weights
    context_length: int | None  # None if the README does not state it
    base: str | None = None
    recipe: str | None = None  # bundled recipe that reproduces it
    instructed: bool = False  # instruction-tuned with the paper's prompt


_TOKENS = {"8k": 8192, "16k": 16384, "32k": 32768, "64k": 65536, "100k": 100000}


def _extended(size: str, context: str, *, full: bool = False, chat: str = "") -> ReleasedModel:
    name = f"Llama-2-{size}{chat}-longlora-{context}" + ("-ft" if full else "")
    return ReleasedModel(
        name=name,
        kind="model" if full else "adapter",
        context_length=_TOKENS[context],
        base=f"meta-llama/Llama-2-{size}{chat}-hf",
        recipe=name.lower(),
    )


_instructed = partial(ReleasedModel, kind="model", context_length=32768, instructed=True)
_SFT = "llama-2-{}-chat-longlora-32k-sft"

RELEASED_MODELS = (
    *(_extended("7b", context, full=True) for context in ("8k", "16k", "32k", "100k")),
    *(_extended("13b", context, full=True) for context in ("8k", "16k", "32k")),
    *(_extended("7b", context) for context in ("8k", "16k", "32k")),
    *(_extended("13b", context) for context in ("8k", "16k", "32k", "64k")),
    _extended("70b", "32k"),
    _extended("70b", "32k", chat="-chat"),
    _instructed(name="LongAlpaca-7B"),
    _instructed(name="LongAlpaca-13B", recipe="longalpaca-13b"),
    _instructed(name="LongAlpaca-70B", recipe="longalpaca-70b"),
    _instructed(name="LongAlpaca-70B-lora", kind="adapter"),
    _instructed(name="LongAlpaca-7B-16k", context_length=16384, recipe="longalpaca-7b"),
    _instructed(name="LongAlpaca-13B-16k", context_length=16384),
    _instructed(name="LongAlpaca-70B-16k", context_length=16384),
    _instructed(name="LongAlpaca-7B-qlora-weights", context_length=None, kind="adapter"),
    _instructed(name="Llama-2-13b-chat-longlora-32k-sft", recipe=_SFT.format("13b")),
    _instructed(
        name="Llama-2-70b-chat-longlora-32k-sft",
        kind="adapter",
        base="meta-llama/Llama-2-70b-chat-hf",
        recipe=_SFT.format("70b"),
    ),
)


def find_released(name: str) -> ReleasedModel | None:
    """Find a model by its hub name, or by a folder with the same name."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    return next((model for model in RELEASED_MODELS if model.name.lower() == last), None)
