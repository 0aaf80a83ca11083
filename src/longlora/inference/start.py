"""From a model's name to a conversation with it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from longlora.errors import ConfigError
from longlora.inference.prefix_cache import Memory, StreamingMemory, WholeMemory
from longlora.inference.settings import ChatSettings
from longlora.inference.speaker import Speaker
from longlora.inference.streaming_cache import key_rotations
from longlora.models.load import DtypeName, load_for_inference

logger = logging.getLogger("longlora")


def load_speaker(
    name: str,
    *,
    dtype: DtypeName = "auto",
    quantization: Literal["nf4"] | None = None,
    trust_remote_code: bool = False,
) -> Speaker:
    """Load a model to talk with, merged or an adapter.

    Raises:
        CheckpointError: the model is missing, incomplete or damaged.
        ConfigError: what packs weights into 4 bits is not installed.
    """
    model, tokenizer = load_for_inference(
        name, dtype=dtype, quantization=quantization, trust_remote_code=trust_remote_code
    )
    speaker = Speaker(model=model, tokenizer=tokenizer, name=name)
    if speaker.without_template:
        logger.info("the tokenizer has no chat template: questions are written as in the paper, [INST]…[/INST]")
    return speaker


def memory_for(speaker: Speaker, settings: ChatSettings) -> Callable[[], Memory]:
    """Choose how conversations remember, and give what makes a memory for each.

    Raises:
        ConfigError: a streaming window is larger than what the model reads, or the model cannot stream.
    """
    window = settings.stream_window
    if window is None:
        return lambda: WholeMemory(speaker.model)
    if window > speaker.context:
        raise ConfigError(
            f"a streaming window of {window:,} tokens is more than {speaker.name} reads ({speaker.context:,}): set it "
            "to that or less"
        )
    rotations = key_rotations(speaker.model)
    StreamingMemory(rotations, window)  # so that a size that cannot be is refused now
    return lambda: StreamingMemory(rotations, window)


def folder_name(name: str) -> str:
    """A model's name without the folders before it."""
    return Path(name).name or name
