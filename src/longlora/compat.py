"""Differences between supported versions of other libraries, each with the condition that ends it."""

from dataclasses import fields
from typing import Any

from transformers import TrainingArguments


def checkpointing_arguments(enabled: bool) -> dict[str, Any]:
    """Name the training argument that recomputes activations; transformers 5.23 warns about the older name.

    Ends when transformers below 5.23 is no longer supported.
    """
    names = {field.name for field in fields(TrainingArguments)}
    return {"activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing": enabled}
