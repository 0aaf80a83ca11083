"""The models that the authors released, as their README lists them (Yukang/… on the hub).

Context is what it, or the model's name, says, in tokens. Bases are those in its table of pretrained weights; for models
that were tuned on instructions it does not say which one they were made of, and `adapter_config.json` or the user has
to.
"""

from dataclasses import dataclass
from typing import Literal

OWNER = "Yukang"


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """One repository of the authors."""

    name: str
    kind: Literal["adapter", "model"]
    """`adapter`: LoRA weights beside embeddings and norms. `model`: all weights."""

    context_length: int | None
    """None where the README does not say."""

    base: str | None = None
    recipe: str | None = None
    """Recipe of longlora that makes such a model anew."""

    instructed: bool = False
    """Whether it was tuned to follow instructions, with the paper's prompt."""


def find_released(name: str) -> ReleasedModel | None:
    """Find a model by its name on the hub, or by a folder of that name."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    return next((model for model in RELEASED_MODELS if model.name.lower() == last), None)


def _extended(size: str, context: str, context_length: int, *, full: bool = False, chat: str = "") -> ReleasedModel:
    name = f"Llama-2-{size}{chat}-longlora-{context}" + ("-ft" if full else "")
    return ReleasedModel(
        name=name,
        kind="model" if full else "adapter",
        context_length=context_length,
        base=f"meta-llama/Llama-2-{size}{chat}-hf",
        recipe=name.lower(),
    )


def _instructed(
    name: str,
    context_length: int | None,
    *,
    kind: Literal["adapter", "model"] = "model",
    base: str | None = None,
    recipe: str | None = None,
) -> ReleasedModel:
    return ReleasedModel(name=name, kind=kind, context_length=context_length, base=base, recipe=recipe, instructed=True)


RELEASED_MODELS = (
    _extended("7b", "8k", 8192, full=True),
    _extended("7b", "16k", 16384, full=True),
    _extended("7b", "32k", 32768, full=True),
    _extended("7b", "100k", 100000, full=True),
    _extended("13b", "8k", 8192, full=True),
    _extended("13b", "16k", 16384, full=True),
    _extended("13b", "32k", 32768, full=True),
    _extended("7b", "8k", 8192),
    _extended("7b", "16k", 16384),
    _extended("7b", "32k", 32768),
    _extended("13b", "8k", 8192),
    _extended("13b", "16k", 16384),
    _extended("13b", "32k", 32768),
    _extended("13b", "64k", 65536),
    _extended("70b", "32k", 32768),
    _extended("70b", "32k", 32768, chat="-chat"),
    _instructed("LongAlpaca-7B", 32768),
    _instructed("LongAlpaca-13B", 32768, recipe="longalpaca-13b"),
    _instructed("LongAlpaca-70B", 32768, recipe="longalpaca-70b"),
    _instructed("LongAlpaca-70B-lora", 32768, kind="adapter"),
    _instructed("LongAlpaca-7B-16k", 16384, recipe="longalpaca-7b"),
    _instructed("LongAlpaca-13B-16k", 16384),
    _instructed("LongAlpaca-70B-16k", 16384),
    _instructed("LongAlpaca-7B-qlora-weights", None, kind="adapter"),
    _instructed("Llama-2-13b-chat-longlora-32k-sft", 32768, recipe="llama-2-13b-chat-longlora-32k-sft"),
    _instructed(
        "Llama-2-70b-chat-longlora-32k-sft",
        32768,
        kind="adapter",
        base="meta-llama/Llama-2-70b-chat-hf",
        recipe="llama-2-70b-chat-longlora-32k-sft",
    ),
)
