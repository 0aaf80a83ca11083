"""One function per kind of position scaling: from the present parameters to those for the longer context.

Rotary embeddings rotate pair i of a head's first d dimensions by the angle m · ω_i at position m, with frequency
ω_i = θ^(-2i/d) (Su et al., arXiv 2104.09864, equation 15). Every method changes ω_i; some also scale cos and sin. The
docstrings give the formulas that transformers computes from the parameters.

d   rotated dimensions of a head: head_dim × partial_rotary_factor
θ   `rope_theta`                 L   original context, in tokens: that of the pretraining
m   position, in tokens          C   new context, in tokens
s   `factor`                     λ_i wavelength of pair i, in tokens: 2π / ω_i
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from longlora.errors import ConfigError

RopeType = Literal["linear", "dynamic", "yarn", "llama3", "longrope", "theta"]

# The options of each type besides the context, by their names in transformers.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "linear": (),
    "dynamic": (),
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor", "attention_factor"),
    "theta": ("rope_theta",),
}
LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})
"""The types whose angles depend on the longest document at hand."""
# The keys that an extension replaces; the others are not part of the scaling.
_SCALING_KEYS = {"type", "rope_type", "factor", "original_max_position_embeddings"} | {
    key for keys in OPTIONS.values() for key in keys if key != "rope_theta"
}


@dataclass(frozen=True, kw_only=True)
class Positions:
    """A model's present positions, and the context to extend them to; all contexts in tokens."""

    parameters: Mapping[str, Any]  # transformers' `rope_parameters` of the layers to extend, including `rope_theta`
    max_position_embeddings: int
    base_context: int  # the present context
    context_length: int  # C
    rotary_dim: int  # d

    @property
    def rope_type(self) -> str:
        """transformers' name of the present scaling; `default` means none."""
        return str(self.parameters.get("rope_type", "default"))

    @property
    def original_context(self) -> int:
        """L, in tokens: the context before the present scaling if its parameters record it, else the present one."""
        if self.rope_type in ("yarn", "llama3", "longrope"):
            return int(self.parameters["original_max_position_embeddings"])
        if self.rope_type == "dynamic":  # transformers scales from it, so a longer context must not change it
            return self.max_position_embeddings
        return self.base_context

    @property
    def growth(self) -> float:
        """The ratio of the new context to the present one."""
        return self.context_length / self.base_context

    def rescaled(self, rope_type: str, **values: Any) -> dict[str, Any]:
        """Return the parameters for another scaling, keeping θ and unrelated ones (partial rotation, sections)."""
        kept = {key: value for key, value in self.parameters.items() if key not in _SCALING_KEYS}
        return {**kept, "rope_type": rope_type, **values}


def linear(positions: Positions, options: Mapping[str, Any]) -> dict[str, Any]:
    """Position interpolation: ω_i / s (Chen et al., arXiv 2306.15595, equation 4); the paper's choice.

    A second extension multiplies: ×8 and then ×2 is ×16. The factor is the exact ratio, which may be fractional.
    """
    present_factor = float(positions.parameters["factor"]) if positions.rope_type == "linear" else 1.0
    return positions.rescaled("linear", factor=present_factor * positions.growth)


def theta(positions: Positions, options: Mapping[str, Any]) -> dict[str, Any]:
    """A larger base θ' ("adjusted base frequency", Xiong et al., arXiv 2309.16039, section 2.1): ω_i = θ'^(-2i/d).

    By default it is the NTK-aware θ' = θ · s^(d/(d-2)) with s = C / (present context) (Peng et al., arXiv 2309.00071,
    definition 1): the slowest pair is interpolated by s, the fastest not at all.

    A second extension starts from the present θ; since powers multiply, ×8 and then ×2 is ×16. An existing linear
    factor is kept: both changes multiply ω_i.
    """
    present = float(positions.parameters["rope_theta"])
    exponent = positions.rotary_dim / (positions.rotary_dim - 2)
    wanted = float(options.get("rope_theta", present * positions.growth**exponent))
    if wanted <= present:
        raise ConfigError(f"rope.rope_theta={wanted:g} must exceed the model's own, {present:g}, to read further")
    return {**positions.parameters, "rope_theta": wanted}


def dynamic(positions: Positions, options: Mapping[str, Any]) -> dict[str, Any]:
    """Dynamic NTK: θ grows with the sequence, θ' = θ · (s·n/L - (s-1))^(d/(d-2)) for n > L tokens, θ otherwise.

    Source: u/emozilla's formula as implemented in transformers, with s = C / L; the idea is "dynamic scaling" in Peng
    et al., arXiv 2309.00071, section 3.3, with the base for s = 1. At n = C it multiplies θ by (s² - s + 1)^(d/(d-2)),
    far more than the NTK-aware formula.

    - transformers takes L from `max_position_embeddings`, which therefore does not change; s determines the context.
    - n is the largest position in the batch + 1. A row of packed documents counts as its longest document, so a run
      trains with many values of θ'. After a batch longer than L, θ' is kept until a longer one, or one shorter than L.
    - Keys are cached after rotation. While a text is generated beyond L, older keys keep the smaller θ': the result
      differs from that of reading the whole text at once.

    A second extension computes s from L again.
    """
    return positions.rescaled("dynamic", factor=positions.context_length / positions.original_context)


def yarn(positions: Positions, options: Mapping[str, Any]) -> dict[str, Any]:
    """YaRN (Peng et al., arXiv 2309.00071, definitions 2 and 3): interpolate slow pairs, keep fast ones, blend others.

    ω_i · ((1-γ_i)/s + γ_i), and cos and sin times `attention_factor`, by default 0.1·ln(s) + 1 (or with mscale, the
    ratio of 0.1·mscale·ln(s) + 1 to the same with mscale_all_dim). γ is 1 for pairs with more than `beta_fast`
    rotations within L, and 0 for fewer than `beta_slow`. In between, γ is linear in the pair's index, as in the
    authors' code; in the paper it is linear in the number of rotations. `truncate` rounds the ends of the ramp outwards
    to whole pairs.

    A second extension computes s from L again, and keeps the model's options unless they are given.
    """
    factor = positions.context_length / positions.original_context
    chosen = {**_own(positions, "yarn"), **options}
    if "attention_factor" in options and ("mscale" in options or "mscale_all_dim" in options):
        raise ConfigError("rope.attention_factor replaces mscale and mscale_all_dim; give one or the other")
    if ("mscale" in chosen) != ("mscale_all_dim" in chosen):
        raise ConfigError("rope.mscale and rope.mscale_all_dim work only together; give both or neither")
    if (beta_fast := chosen.get("beta_fast", 32)) <= (beta_slow := chosen.get("beta_slow", 1)):
        raise ConfigError(f"rope.beta_fast={beta_fast} must exceed rope.beta_slow={beta_slow}")
    _settle_attention_factor(positions, chosen, options, _yarn_attention_factor(chosen, positions.parameters))
    return positions.rescaled(
        "yarn", factor=factor, original_max_position_embeddings=positions.original_context, **chosen
    )


def llama3(positions: Positions, options: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3.1's scaling by wavelength (`apply_scaling` in Meta's llama-models; no paper); cos and sin are not scaled.

    ω_i / s if λ_i > L / `low_freq_factor` (default 1), ω_i if λ_i < L / `high_freq_factor` (default 4), and in between
    (1-t)·ω_i/s + t·ω_i with t = (L/λ_i - low) / (high - low).

    s is C / L unless `factor` is given. A second extension also computes s from L, but lets it grow at least in
    proportion to the context: Llama 3.2 has s = 32 at 16 times L, and s = C / L would not change it at 32 times L. So
    s = max(C / L, s_present · C / (present context)).
    """
    present_factor = float(positions.parameters["factor"]) if positions.rope_type == "llama3" else 1.0
    counted = max(positions.context_length / positions.original_context, present_factor * positions.growth)
    factor = float(options.get("factor", counted))
    if factor <= present_factor:
        raise ConfigError(f"rope.factor={factor:g} must exceed the present factor, {present_factor:g}, to read further")
    chosen = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, **_own(positions, "llama3"), **options}
    if (high := chosen["high_freq_factor"]) <= (low := chosen["low_freq_factor"]):
        raise ConfigError(f"rope.high_freq_factor={high} must exceed rope.low_freq_factor={low}")
    values = {**chosen, "factor": factor, "original_max_position_embeddings": positions.original_context}
    return positions.rescaled("llama3", **values)


def longrope(positions: Positions, options: Mapping[str, Any]) -> dict[str, Any]:
    """LongRoPE (Ding et al., arXiv 2402.13753, section 3): one factor per pair, from a search that is not part of this.

    ω_i / long_factor_i for sequences longer than L, ω_i / short_factor_i for others (by default ones). cos and sin
    times `attention_factor`, by default √(1 + ln s / ln L) with s = C / L (as in Phi-3).

    - The length is the largest position in the batch + 1: a row of packed documents that are all shorter than L trains
      the short factors. Training at the full length trains the long ones.
    - Keys are cached after rotation. When a generated text grows beyond L, its first L keys keep the short factors,
      unless the cache is discarded at that point.

    A second extension needs new long factors and computes s from L again; short factors are kept unless given.
    """
    num_pairs = positions.rotary_dim // 2
    if "long_factor" not in options:
        raise ConfigError(f"rope.rope_type=longrope needs rope.long_factor, {num_pairs} numbers from a search")
    chosen = {"short_factor": [1.0] * num_pairs, **_own(positions, "longrope"), **options}
    for name in ("short_factor", "long_factor"):
        chosen[name] = [float(number) for number in chosen[name]]
        if len(chosen[name]) != num_pairs:
            raise ConfigError(f"rope.{name} has {len(chosen[name])} numbers; this model needs {num_pairs}")
    original = positions.original_context
    present_factor = positions.parameters.get("factor") or positions.max_position_embeddings / original
    usual = math.sqrt(1 + math.log(present_factor) / math.log(original)) if present_factor > 1 else 1.0
    _settle_attention_factor(positions, chosen, options, usual)
    factor = positions.context_length / original
    return positions.rescaled("longrope", factor=factor, original_max_position_embeddings=original, **chosen)


METHODS: Mapping[str, Callable[[Positions, Mapping[str, Any]], dict[str, Any]]] = {
    method.__name__: method for method in (linear, dynamic, yarn, llama3, longrope, theta)
}
assert set(METHODS) == set(OPTIONS) == set(get_args(RopeType))


def check_present(positions: Positions, wanted: str) -> None:
    """Refuse to combine two kinds of scaling, which transformers' parameters cannot express.

    Raises:
        ConfigError: the model's positions have another kind of scaling.
    """
    present = positions.rope_type
    if present in ("default", wanted) or (wanted == "theta" and present in ("linear", "proportional")):
        return
    if present == "linear":
        remedy = "use linear or theta, which build on it, or start from the original model"
    elif present in METHODS:
        remedy = f"use rope.rope_type: {present}, which scales from the original {positions.original_context} tokens"
    else:
        remedy = "use theta" if present == "proportional" else "it cannot be extended"
    raise ConfigError(
        f"the model's positions are already scaled by {present!r}, which cannot be combined with {wanted!r}; {remedy}"
    )


def _own(positions: Positions, rope_type: str) -> dict[str, Any]:
    """Return the model's own options, if it already has this kind of scaling."""
    parameters = positions.parameters if positions.rope_type == rope_type else {}
    return {key: parameters[key] for key in OPTIONS[rope_type] if parameters.get(key) is not None and key != "factor"}


def _settle_attention_factor(
    positions: Positions, chosen: dict[str, Any], options: Mapping[str, Any], usual: float
) -> None:
    """Set the given attention factor, or remove the model's own, so that transformers recomputes it."""
    if "attention_factor" in options:
        chosen["attention_factor"] = float(options["attention_factor"])
        chosen.pop("mscale", None)
        chosen.pop("mscale_all_dim", None)
    elif "mscale" in options:  # with mscale_all_dim, as checked; transformers would give priority to the factor
        chosen.pop("attention_factor", None)
    elif (own := chosen.pop("attention_factor", None)) is not None and not math.isclose(own, usual, rel_tol=1e-3):
        raise ConfigError(
            f"the model sets an attention_factor of its own, {own:g}, for its present factor "
            f"{positions.parameters.get('factor')}; set rope.attention_factor for the new one"
        )


def _yarn_attention_factor(chosen: Mapping[str, Any], parameters: Mapping[str, Any]) -> float:
    """Return the attention factor that transformers computes for parameters without one."""
    factor = parameters.get("factor") or 1.0
    numerator, denominator = (
        0.1 * chosen[name] * math.log(factor) + 1 if name in chosen else 1.0 for name in ("mscale", "mscale_all_dim")
    )
    return numerator / denominator if "mscale" in chosen else 0.1 * math.log(factor) + 1
