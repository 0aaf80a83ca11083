"""Determine a model's present context from its positions, and extend it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longlora.errors import ConfigError
from longlora.rope.methods import METHODS, OPTIONS, Positions, check_present

FULL_ATTENTION = "full_attention"
"""transformers' name for layers without a window, in parameters that differ by kind of layer."""


@dataclass(frozen=True, kw_only=True)
class RopeExtension:
    """A model's new positions, with its contexts before and after in tokens."""

    rope_parameters: dict[str, Any]  # in transformers' form, including `rope_theta`
    base_context: int
    context_length: int
    max_position_embeddings: int  # `context_length`, except for `dynamic`: the context that the scaling starts from


def extend_rope(
    rope_parameters: Mapping[str, Any],
    *,
    max_position_embeddings: int,
    context_length: int,
    head_dim: int,
    rope_type: str = "linear",
    base_context: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> RopeExtension:
    """Compute the `rope_parameters` that extend a model to `context_length` tokens.

    The functions in `methods.py` document what each `rope_type` computes, and the effect of a second extension.
    Parameters that differ by kind of layer are extended for full attention only: a layer with a sliding window never
    sees a distance that it was not trained with.

    `rope_parameters` are the model's present ones, flat or by kind of layer; `options` are values for the parameters in
    `OPTIONS[rope_type]`; `base_context` is the model's present context, if its configuration does not state it.
    Contexts are in tokens.

    Raises:
        ConfigError: the new context is not longer than the old, an option does not belong to the type, or the model's
            positions cannot be scaled in this way.
    """
    options = options or {}
    if rope_type not in METHODS:
        raise ConfigError(f"rope.rope_type={rope_type!r} is unknown; use one of {', '.join(METHODS)}")
    for name in options:
        if name not in OPTIONS[rope_type]:
            owners = " or ".join(owner for owner, names in OPTIONS.items() if name in names) or "no type"
            raise ConfigError(f"rope.{name} belongs to {owners}, not to rope.rope_type={rope_type}")
    present = extended_parameters(rope_parameters)
    by_layer_type = present is not rope_parameters
    if by_layer_type and "truncate" in options:
        raise ConfigError("rope.truncate has no effect where positions differ by kind of layer; leave it out")
    if base_context is None:
        base_context = present_context(rope_parameters, max_position_embeddings)
    if context_length <= base_context:
        raise ConfigError(
            f"context_length={context_length} must exceed the {base_context} tokens that the model already reads; "
            "choose a longer one, train within them on conversations (data.kind: sft), or correct rope.base_context"
        )
    # "proportional" spreads the frequencies over the whole head, and sets the slow ones to zero.
    is_spread = present.get("rope_type") == "proportional"
    rotated_part = 1.0 if is_spread else float(present.get("partial_rotary_factor") or 1.0)
    positions = Positions(
        parameters=present,
        max_position_embeddings=max_position_embeddings,
        base_context=base_context,
        context_length=context_length,
        rotary_dim=int(head_dim * rotated_part),
    )
    check_present(positions, rope_type)
    extended = METHODS[rope_type](positions, options)
    return RopeExtension(
        rope_parameters={**rope_parameters, FULL_ATTENTION: extended} if by_layer_type else extended,
        base_context=base_context,
        context_length=context_length,
        max_position_embeddings=positions.original_context if rope_type == "dynamic" else context_length,
    )


def extended_parameters(rope_parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters that an extension changes: all, or those of full attention if they differ by kind of layer.

    Raises:
        ConfigError: they differ by kind of layer, and no kind is full attention with rotary positions.
    """
    if not any(isinstance(value, Mapping) for value in rope_parameters.values()):
        return rope_parameters
    full: Mapping[str, Any] | None = rope_parameters.get(FULL_ATTENTION)
    if full is None:
        raise ConfigError(
            f"the model has rotary positions only for layers of the kinds {', '.join(rope_parameters)}, not for "
            f"{FULL_ATTENTION}: there is nothing to extend"
        )
    return full


def present_context(rope_parameters: Mapping[str, Any], max_position_embeddings: int) -> int:
    """Return a model's present context in tokens, which may be more than its `max_position_embeddings`.

    dynamic: `factor` times `max_position_embeddings`, from which its scaling starts. yarn: `factor` times the original
    context if that is more; configurations edited by hand, as Qwen's model cards recommend, keep the shorter number.
    """
    by_layer_type = any(isinstance(value, Mapping) for value in rope_parameters.values())
    parameters = (rope_parameters.get(FULL_ATTENTION) or {}) if by_layer_type else rope_parameters
    rope_type = parameters.get("rope_type", "default")
    if rope_type == "dynamic":
        return round(parameters["factor"] * max_position_embeddings)
    if rope_type != "yarn":
        return max_position_embeddings
    return max(max_position_embeddings, round(parameters["factor"] * parameters["original_max_position_embeddings"]))


def describe_rope(rope_parameters: Mapping[str, Any]) -> str:
    """Describe how positions are scaled in a few words, such as "linear, factor 8, theta 10000"."""
    parameters = extended_parameters(rope_parameters)
    factor = f"factor {parameters['factor']:g}, " if "factor" in parameters else ""
    return f"{parameters.get('rope_type', 'default')}, {factor}theta {parameters['rope_theta']:g}"
