"""How a model under "s2" groups its tokens: what was set, else what the environment or its context says.

The settings stand on the modules of the model and not in its configuration, which would be saved with them: a later
stage has another context, and other groups.
"""

import os
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from longlora.errors import ConfigError
from longlora.positions import readable_context

GROUP_SIZE_VARIABLE = "LONGLORA_GROUP_SIZE"
DEFAULT_GROUP_RATIO = 0.25
_ATTRIBUTE = "s2_grouping"  # of modules
USE_FULL_ATTENTION = (
    "train it with full attention (attention.pattern: full in a recipe, another attn_implementation in a script)"
)


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The settings of S²-Attn.

    Raises:
        ConfigError: a group without tokens.
    """

    group_size: int | None
    """Tokens of a group; None is full causal attention within documents."""

    def __post_init__(self) -> None:
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(f"group_size must be at least 1 token, got {self.group_size}")


def set_grouping(model: torch.nn.Module, grouping: Grouping) -> None:
    """Fix the settings of a model and whatever wraps it, without asking whether they can be followed."""
    for module in model.modules():  # which of them attend shows when they do
        setattr(module, _ATTRIBUTE, grouping)


def grouping_of(module: torch.nn.Module, default: Grouping) -> Grouping:
    """Return the settings of a layer."""
    return getattr(module, _ATTRIBUTE, default)


def default_grouping(config: PreTrainedConfig) -> Grouping:
    """The settings where none are made: groups of `LONGLORA_GROUP_SIZE` tokens, else a quarter of the model's context.

    Raises:
        ConfigError: the variable is not a number of tokens, or the configuration does not say how far the model reads.
    """
    wanted = os.environ.get(GROUP_SIZE_VARIABLE)
    if wanted is not None:
        if not wanted.isdecimal() or int(wanted) < 1:
            raise ConfigError(f"{GROUP_SIZE_VARIABLE} must be a number of tokens from 1, got {wanted!r}")
        return Grouping(group_size=int(wanted))
    try:
        context = readable_context(config)
    except ConfigError as error:
        raise ConfigError(
            f"{error}, of which a group would be a quarter: call longlora.set_group_size(model, …) or set "
            f"{GROUP_SIZE_VARIABLE}"
        ) from None
    return Grouping(group_size=max(1, round(context * DEFAULT_GROUP_RATIO)))
