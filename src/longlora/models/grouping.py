"""The S²-Attn settings of a model: set explicitly, or derived from the environment or the model's context.

They are attributes of the model's modules and not in its configuration, which would save them: a later stage has
another context, and so other groups.
"""

import os
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig

from longlora.errors import ConfigError
from longlora.models.positions import readable_context
from longlora.support.choices import DEFAULT_GROUP_RATIO

GROUP_SIZE_VARIABLE = "LONGLORA_GROUP_SIZE"
SHIFT_VARIABLE = "LONGLORA_SHIFT"
SINK_TOKENS_VARIABLE = "LONGLORA_SINK_TOKENS"
FULL_ATTENTION_INTERVAL_VARIABLE = "LONGLORA_FULL_ATTENTION_INTERVAL"
_ATTRIBUTE = "s2_grouping"  # on modules
USE_FULL_ATTENTION = (
    "train it with full attention (attention.pattern: full in a recipe, another attn_implementation in a script)"
)


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The settings of S²-Attn.

    Raises:
        ConfigError: `group_size` is below 1, `shift` no bool, `sink_tokens` below 0, or `full_attention_interval` below
            2.
    """

    group_size: int | None
    """Tokens per group; None is full causal attention within documents."""

    shift: bool = True
    """Whether half of the heads have groups shifted by half a group, as in the paper."""

    sink_tokens: int = 0
    """How many tokens at the beginning of its document each group also sees; the paper has 0."""

    full_attention_interval: int | None = None
    """One layer in so many trains with full attention, the last of each; None, as in the paper, is no layer. Layers
    with their own window do not count."""

    def __post_init__(self) -> None:
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(f"group_size must be at least 1 token, got {self.group_size}")
        if not isinstance(self.shift, bool):
            raise ConfigError(f"shift must be True or False, got {self.shift!r}")
        if self.sink_tokens < 0:
            raise ConfigError(f"sink_tokens must be 0 or more, got {self.sink_tokens}")
        if self.full_attention_interval is not None and self.full_attention_interval < 2:
            raise ConfigError(
                f"full_attention_interval must be at least 2 layers, got {self.full_attention_interval}; for full "
                "attention in all of them, set no groups"
            )

    def full_layers(self, config: PreTrainedConfig) -> list[int]:
        """Return the numbers of the layers that train with full attention although the others have groups.

        Raises:
            ConfigError: the interval is longer than the model.
        """
        if self.group_size is None or self.full_attention_interval is None:
            return []
        kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
        unwindowed = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
        if self.full_attention_interval > len(unwindowed):
            raise ConfigError(
                f"full_attention_interval={self.full_attention_interval} exceeds the {len(unwindowed)} layers of "
                f"{config.model_type} that could have groups; choose a smaller one, or leave it out"
            )
        return unwindowed[self.full_attention_interval - 1 :: self.full_attention_interval]

    def of_layer(self, layer: torch.nn.Module) -> "Grouping":
        """Return the settings of an attention layer: these, or those of full attention.

        Raises:
            ConfigError: as for `full_layers`, or some layers have full attention and this one has no number.
        """
        if self.group_size is None or self.full_attention_interval is None:
            return self
        assert isinstance(layer.config, PreTrainedConfig)
        full = self.full_layers(layer.config)
        if (number := getattr(layer, "layer_idx", None)) is None:
            raise ConfigError(
                f"full_attention_interval={self.full_attention_interval}: {type(layer).__name__} does not know which "
                "layer it is; leave full_attention_interval out"
            )
        return Grouping(group_size=None) if number in full else self


def set_grouping(model: torch.nn.Module, grouping: Grouping) -> None:
    """Set the settings on a model and its wrappers, without checking whether the model supports them."""
    for module in model.modules():  # it is not known in advance which of them call attention
        setattr(module, _ATTRIBUTE, grouping)


def grouping_of(module: torch.nn.Module) -> Grouping | None:
    """Return the settings set on a model's module; None if none were set."""
    return getattr(module, _ATTRIBUTE, None)


def default_grouping(config: PreTrainedConfig) -> Grouping:
    """Return the default settings: from the environment, otherwise groups of a quarter of the model's context.

    The variables are `LONGLORA_GROUP_SIZE`, `LONGLORA_SHIFT` (0 or 1), `LONGLORA_SINK_TOKENS` and
    `LONGLORA_FULL_ATTENTION_INTERVAL`.

    Raises:
        ConfigError: a variable is not a whole number within its limits, or the configuration does not state the model's
            context.
    """
    grouping = Grouping(
        group_size=_from_environment(GROUP_SIZE_VARIABLE, at_least=1),
        shift=_from_environment(SHIFT_VARIABLE, at_least=0, at_most=1) != 0,
        sink_tokens=_from_environment(SINK_TOKENS_VARIABLE, at_least=0) or 0,
        full_attention_interval=_from_environment(FULL_ATTENTION_INTERVAL_VARIABLE, at_least=2),
    )
    if grouping.group_size is not None:
        return grouping
    try:
        context = readable_context(config)
    except ConfigError as error:
        raise ConfigError(
            f"{error}, so there is no default group size (a quarter of it): call longlora.set_group_size(model, …) or "
            f"set {GROUP_SIZE_VARIABLE}"
        ) from None
    return replace(grouping, group_size=max(1, round(context * DEFAULT_GROUP_RATIO)))


def _from_environment(variable: str, *, at_least: int, at_most: int | None = None) -> int | None:
    wanted = os.environ.get(variable)
    if wanted is None:
        return None
    if not wanted.isdecimal() or int(wanted) < at_least or (at_most is not None and int(wanted) > at_most):
        limits = f"at least {at_least}" if at_most is None else f"{at_least} to {at_most}"
        raise ConfigError(f"{variable} must be a whole number, {limits}, got {wanted!r}")
    return int(wanted)
