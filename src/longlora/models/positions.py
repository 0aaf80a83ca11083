"""Read and extend the rotary positions in a model's configuration."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from longlora.errors import ConfigError
from longlora.rope.extend import FULL_ATTENTION, RopeExtension, extend_rope, extended_parameters, present_context
from longlora.rope.methods import LENGTH_DEPENDENT

logger = logging.getLogger("longlora")


def extend_positions(
    config: PreTrainedConfig,
    *,
    context_length: int,
    rope_type: str = "linear",
    base_context: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> RopeExtension:
    """Extend a configuration's positions to `context_length` tokens, in place, and return what changed.

    The arguments are those of `extend_rope`. Layers without positions (NoPE) stay without; if positions differ by kind
    of layer, those of full attention are extended.

    Raises:
        ConfigError: the model has no rotary positions, already has this context, or cannot be scaled in this way.
    """
    text_config = config.get_text_config()
    extension = extend_rope(
        rotary_parameters(config),
        max_position_embeddings=_size(text_config, "max_position_embeddings"),
        context_length=context_length,
        head_dim=_head_dim(text_config),
        rope_type=rope_type,
        base_context=base_context,
        options=options,
    )
    set_positions(
        config, rope_parameters=extension.rope_parameters, max_position_embeddings=extension.max_position_embeddings
    )
    _check_kept(text_config, rope_type)
    return extension


def set_positions(
    config: PreTrainedConfig, *, rope_parameters: Mapping[str, Any], max_position_embeddings: int
) -> None:
    """Write positions into a configuration, in place."""
    text_config = config.get_text_config()
    text_config.rope_parameters = copy.deepcopy(dict(rope_parameters))
    text_config.max_position_embeddings = max_position_embeddings
    original = extended_parameters(rope_parameters).get("original_max_position_embeddings")
    if original is not None and "original_max_position_embeddings" in text_config.to_dict():
        # Phi-3 also has it outside the parameters, and reads it there.
        text_config.original_max_position_embeddings = original


def without_older_names(config: PreTrainedConfig) -> PreTrainedConfig:
    """Remove transformers 4's `type` from parameters that also have `rope_type`, in place.

    Merged models have both, for older readers; models derived from them should not inherit the old name.
    """
    parameters = getattr(config.get_text_config(), "rope_parameters", None)
    for each in (parameters, *(parameters or {}).values()):
        if isinstance(each, dict) and "rope_type" in each:
            each.pop("type", None)
    return config


def rotary_parameters(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a copy of a model's `rope_parameters`, in the form of transformers 5.

    Raises:
        ConfigError: the model has none, or does not use them.
    """
    values = config.get_text_config().to_dict()
    # Falcon may have both, and then uses ALiBi; Granite 4's hybrids state the type they use.
    unused = values.get("alibi") or values.get("position_embedding_type", "rope") not in ("rope", "rotary")
    if not values.get("rope_parameters") or unused:
        raise ConfigError(
            f"{values['model_type']} has no rotary positions that can be rescaled to a longer context; choose a model "
            "with rotary positions"
        )
    return copy.deepcopy(values["rope_parameters"])


def without_dynamic_scaling(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy whose positions do not depend on the input length, for models on "meta", which have no values."""
    config = copy.deepcopy(config)
    text_config = config.get_text_config()
    rope_parameters = text_config.to_dict().get("rope_parameters") or {}
    for parameters in (rope_parameters, rope_parameters.get(FULL_ATTENTION) or {}):
        if parameters.get("rope_type") in LENGTH_DEPENDENT:
            plain = {name: parameters[name] for name in ("rope_theta", "partial_rotary_factor") if name in parameters}
            parameters.clear()
            parameters.update(plain, rope_type="default")
            text_config.rope_parameters = rope_parameters
    return config


def readable_context(config: PreTrainedConfig) -> int:
    """Return a model's context in tokens: `max_position_embeddings`, or more if its positions are scaled further.

    Raises:
        ConfigError: the configuration does not state it.
    """
    text_config = config.get_text_config()
    parameters = text_config.to_dict().get("rope_parameters") or {}
    return present_context(parameters, _size(text_config, "max_position_embeddings"))


def _head_dim(text_config: PreTrainedConfig) -> int:
    """Return the head dimension of the layers with full attention, which is larger than others' in a few models."""
    values = text_config.to_dict()
    overridden = [layer["head_dim"] for layer in (values.get("per_layer_config") or {}).values() if "head_dim" in layer]
    if overridden:
        return int(max(overridden))
    return int(values.get("head_dim") or _size(text_config, "hidden_size") // _size(text_config, "num_attention_heads"))


def _size(text_config: PreTrainedConfig, name: str) -> int:
    """Return a number by its common name in transformers, which maps it to that of the model type."""
    value = getattr(text_config, name, None)
    if not isinstance(value, int):
        raise ConfigError(f"the configuration of {text_config.model_type} has no {name}")
    return value


def _check_kept(text_config: PreTrainedConfig, rope_type: str) -> None:
    """Check, by a round trip in memory, that the model type does not change or reject the new positions."""
    wanted = text_config.rope_parameters
    try:
        text_config.validate_rope()
        kept = type(text_config).from_dict(text_config.to_dict()).rope_parameters
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{text_config.model_type} cannot take rope.rope_type={rope_type}: {error}") from error
    if kept != wanted:
        raise ConfigError(
            f"{text_config.model_type} cannot take rope.rope_type={rope_type}: its configuration would read "
            f"{kept} where {wanted} was written"
        )
