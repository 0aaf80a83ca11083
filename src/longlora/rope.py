"""Rescale rotary positions to a longer context, as a change of a model's `rope_parameters`.

Plain dictionaries in, plain dictionaries out: nothing here knows a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longlora.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RopeExtension:
    """New positions of a model, and where they came from."""

    rope_parameters: dict[str, Any]
    """transformers' `rope_parameters` of the extended model, `rope_theta` included."""

    base_context: int
    """Tokens the model could read before."""

    context_length: int
    """Tokens it is extended to."""


def extend_rope(
    rope_parameters: Mapping[str, Any], *, base_context: int, context_length: int, rope_type: str = "linear"
) -> RopeExtension:
    """Compute the `rope_parameters` that take a model from `base_context` to `context_length` tokens.

    `linear` is position interpolation (Chen et al., arXiv 2306.15595, equation 4): position m is encoded as m / factor.
    The factor multiplies one that is already there: a model that was taken ×8 and is now taken ×2 ends at ×16, and its
    frequencies are divided by 16, not by 2. The factor is the exact quotient; it need not be whole.

    Raises:
        ConfigError: the new context is not longer than the old, or the model's positions are scaled in another way.
    """
    if context_length <= base_context:
        raise ConfigError(
            f"context_length={context_length} must exceed the {base_context} tokens that the model already reads"
        )
    if rope_type != "linear":
        raise ConfigError(f"rope.rope_type={rope_type!r} is not implemented; use 'linear'")
    present_type = rope_parameters.get("rope_type", "default")
    if present_type not in ("default", "linear"):
        raise ConfigError(
            f"the model's positions are already scaled by {present_type!r}; only models with rope_type "
            "'default' or 'linear' can be extended by linear interpolation"
        )
    present_factor = float(rope_parameters["factor"]) if present_type == "linear" else 1.0
    factor = present_factor * context_length / base_context
    return RopeExtension(
        rope_parameters={**rope_parameters, "rope_type": "linear", "factor": factor},
        base_context=base_context,
        context_length=context_length,
    )
