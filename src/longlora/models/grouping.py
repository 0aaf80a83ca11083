"""How a model under "s2" groups its tokens: what was set, else what the environment or its context says.

The settings stand on the modules of the model and not in its configuration, which would be saved with them: a later
stage has another context, and other groups.
"""

import os
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from longlora.errors import ConfigError
from longlora.models.positions import readable_context

GROUP_SIZE_VARIABLE = "LONGLORA_GROUP_SIZE"
SINK_TOKENS_VARIABLE = "LONGLORA_SINK_TOKENS"
DEFAULT_GROUP_RATIO = 0.25
_ATTRIBUTE = "s2_grouping"  # of modules
USE_FULL_ATTENTION = (
    "train it with full attention (attention.pattern: full in a recipe, another attn_implementation in a script)"
)


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The settings of S²-Attn.

    Raises:
        ConfigError: a group without tokens, or fewer sink tokens than none.
    """

    group_size: int | None
    """Tokens of a group; None is full causal attention within documents."""

    sink_tokens: int = 0
    """How many tokens at the beginning of its document each group also sees; 0 is the paper."""

    def __post_init__(self) -> None:
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(f"group_size must be at least 1 token, got {self.group_size}")
        if self.sink_tokens < 0:
            raise ConfigError(f"sink_tokens must be 0 or more, got {self.sink_tokens}")


def set_grouping(model: torch.nn.Module, grouping: Grouping) -> None:
    """Fix the settings of a model and whatever wraps it, without asking whether they can be followed."""
    for module in model.modules():  # which of them attend shows when they do
        setattr(module, _ATTRIBUTE, grouping)


def grouping_of(module: torch.nn.Module, default: Grouping) -> Grouping:
    """Return the settings of a layer."""
    return getattr(module, _ATTRIBUTE, default)


def default_grouping(config: PreTrainedConfig) -> Grouping:
    """The settings where none are made: those of the environment, else groups of a quarter of the model's context.

    The variables are `LONGLORA_GROUP_SIZE` and `LONGLORA_SINK_TOKENS`.

    Raises:
        ConfigError: a variable is not a number of tokens, or the configuration does not say how far the model reads.
    """
    sink_tokens = _from_environment(SINK_TOKENS_VARIABLE, at_least=0) or 0
    group_size = _from_environment(GROUP_SIZE_VARIABLE, at_least=1)
    if group_size is not None:
        return Grouping(group_size=group_size, sink_tokens=sink_tokens)
    try:
        context = readable_context(config)
    except ConfigError as error:
        raise ConfigError(
            f"{error}, of which a group would be a quarter: call longlora.set_group_size(model, …) or set "
            f"{GROUP_SIZE_VARIABLE}"
        ) from None
    return Grouping(group_size=max(1, round(context * DEFAULT_GROUP_RATIO)), sink_tokens=sink_tokens)


def _from_environment(variable: str, *, at_least: int) -> int | None:
    wanted = os.environ.get(variable)
    if wanted is None:
        return None
    if not wanted.isdecimal() or int(wanted) < at_least:
        raise ConfigError(f"{variable} must be a number of tokens from {at_least}, got {wanted!r}")
    return int(wanted)
