"""The S²-Attn settings of a model: set explicitly, or derived from the environment or the model's context.

They are attributes of the model's modules and not in its configuration, which would save them: a later stage has
another context, and so other groups.
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
_ATTRIBUTE = "s2_grouping"  # on modules
USE_FULL_ATTENTION = (
    "train it with full attention (attention.pattern: full in a recipe, another attn_implementation in a script)"
)


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The settings of S²-Attn.

    Raises:
        ConfigError: `group_size` is below 1, or `sink_tokens` below 0.
    """

    group_size: int | None
    """Tokens per group; None is full causal attention within documents."""

    sink_tokens: int = 0
    """How many tokens at the beginning of its document each group also sees; the paper has 0."""

    def __post_init__(self) -> None:
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(f"group_size must be at least 1 token, got {self.group_size}")
        if self.sink_tokens < 0:
            raise ConfigError(f"sink_tokens must be 0 or more, got {self.sink_tokens}")


def set_grouping(model: torch.nn.Module, grouping: Grouping) -> None:
    """Set the settings on a model and its wrappers, without checking whether the model supports them."""
    for module in model.modules():  # it is not known in advance which of them call attention
        setattr(module, _ATTRIBUTE, grouping)


def grouping_of(module: torch.nn.Module, default: Grouping) -> Grouping:
    """Return the settings of a layer, or the default if none were set."""
    return getattr(module, _ATTRIBUTE, default)


def default_grouping(config: PreTrainedConfig) -> Grouping:
    """Return the default settings: from the environment, otherwise groups of a quarter of the model's context.

    The variables are `LONGLORA_GROUP_SIZE` and `LONGLORA_SINK_TOKENS`.

    Raises:
        ConfigError: a variable is not a number of tokens, or the configuration does not state the model's context.
    """
    sink_tokens = _from_environment(SINK_TOKENS_VARIABLE, at_least=0) or 0
    group_size = _from_environment(GROUP_SIZE_VARIABLE, at_least=1)
    if group_size is not None:
        return Grouping(group_size=group_size, sink_tokens=sink_tokens)
    try:
        context = readable_context(config)
    except ConfigError as error:
        raise ConfigError(
            f"{error}, so there is no default group size (a quarter of it): call longlora.set_group_size(model, …) or "
            f"set {GROUP_SIZE_VARIABLE}"
        ) from None
    return Grouping(group_size=max(1, round(context * DEFAULT_GROUP_RATIO)), sink_tokens=sink_tokens)


def _from_environment(variable: str, *, at_least: int) -> int | None:
    wanted = os.environ.get(variable)
    if wanted is None:
        return None
    if not wanted.isdecimal() or int(wanted) < at_least:
        raise ConfigError(f"{variable} must be a number of tokens, at least {at_least}, got {wanted!r}")
    return int(wanted)
