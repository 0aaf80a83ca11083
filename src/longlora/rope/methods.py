"""One function for each way to rescale positions: from the present parameters to those of the longer context.

Rotary embeddings turn pair i of a head's first d dimensions by the angle m · ω_i at position m, with frequency
ω_i = θ^(-2i/d) (Su et al., arXiv 2104.09864, equation 15). Every method changes ω_i; some also scale cos and sin. What
transformers computes from the parameters is the formula in the docstring.

d   dimensions of a head that are turned: head_dim × partial_rotary_factor
θ   `rope_theta`                 L   original context, in tokens: what the model was pretrained with
m   position, in tokens          C   new context, in tokens
s   `factor`                     λ_i wavelength of pair i, in tokens: 2π / ω_i
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from longlora.errors import ConfigError

RopeType = Literal["linear", "dynamic", "yarn", "llama3", "longrope", "theta"]

# What may be set for each, beside the context. The names are transformers'.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "linear": (),
    "dynamic": (),
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor", "attention_factor"),
    "theta": ("rope_theta",),
}
# What an extension replaces; all else is no part of the scaling.
_SCALING_KEYS = {"type", "rope_type", "factor", "original_max_position_embeddings"} | {
    key for keys in OPTIONS.values() for key in keys if key != "rope_theta"
}


@dataclass(frozen=True, kw_only=True)
class Positions:
    """The positions of a model as it stands, and how far it is to read; all contexts in tokens."""

    parameters: Mapping[str, Any]  # transformers' `rope_parameters` of the layers to extend, `rope_theta` included
    max_position_embeddings: int
    base_context: int  # what the model reads now
    context_length: int  # C
    rotary_dim: int  # d

    @property
    def rope_type(self) -> str:
        """transformers' name of how the positions are scaled now; `default`: not at all."""
        return str(self.parameters.get("rope_type", "default"))

    @property
    def original_context(self) -> int:
        """L: tokens the model was pretrained with, before any scaling that remembers them."""
        if self.rope_type in ("yarn", "llama3", "longrope"):
            return int(self.parameters["original_max_position_embeddings"])
        if self.rope_type == "dynamic":  # transformers counts it from there, and a longer context must not move it
            return self.max_position_embeddings
        return self.base_context

    @property
    def growth(self) -> float:
        """The new context over what is read now."""
        return self.context_length / self.base_context

    def rescaled(self, rope_type: str, **values: Any) -> dict[str, Any]:
        """The parameters under another scaling: θ and what does not scale (partial rotation, sections) are kept."""
        kept = {key: value for key, value in self.parameters.items() if key not in _SCALING_KEYS}
        return {**kept, "rope_type": rope_type, **values}


def linear(positions: Positions, options: Mapping[str, Any]) -> dict[str, Any]:
    """Position interpolation: ω_i / s (Chen et al., arXiv 2306.15595, equation 4); the paper's choice.

    A second extension multiplies: ×8 and then ×2 is ×16. The factor is the exact quotient; it need not be whole.
    """
    present_factor = float(positions.parameters["factor"]) if positions.rope_type == "linear" else 1.0
    return positions.rescaled("linear", factor=present_factor * positions.growth)


def theta(positions: Positions, options: Mapping[str, Any]) -> dict[str, Any]:
    """A larger base θ' ("adjusted base frequency", Xiong et al., arXiv 2309.16039, section 2.1): ω_i = θ'^(-2i/d).

    Without `rope_theta` it is the NTK-aware θ' = θ · s^(d/(d-2)) with s = C / (what is read now) (Peng et al., arXiv
    2309.00071, definition 1): the slowest pair is interpolated by s, the fastest not at all.

    A second extension starts from the present θ; since powers multiply, ×8 and then ×2 is ×16. Positions that are
    divided by a linear factor stay so: both changes multiply ω_i.
    """
    present = float(positions.parameters["rope_theta"])
    exponent = positions.rotary_dim / (positions.rotary_dim - 2)
    wanted = float(options.get("rope_theta", present * positions.growth**exponent))
    if wanted <= present:
        raise ConfigError(f"rope.rope_theta={wanted:g} must exceed the model's own, {present:g}, to read further")
    return {**positions.parameters, "rope_theta": wanted}


def dynamic(positions: Positions, options: Mapping[str, Any]) -> dict[str, Any]:
    """Dynamic NTK: θ grows with the sequence, θ' = θ · (s·n/L - (s-1))^(d/(d-2)) at n > L tokens, θ below.

    Source: the formula of u/emozilla as transformers has it, s = C / L; the idea is "dynamic scaling" in Peng et al.,
    arXiv 2309.00071, section 3.3, whose base is that of s = 1. At n = C it raises θ by (s² - s + 1)^(d/(d-2)), far more
    than the NTK-aware formula.

    - transformers takes L from `max_position_embeddings`, so that stays as it was; s says how far the model reads.
    - n is the longest position of the batch + 1. A row of several packed documents counts as its longest document, so a
      run trains with many θ'. Once a batch longer than L has been read, θ' stays until a longer one comes, or one
      shorter than L.
    - Keys are cached after they were turned. While a text is generated beyond L, older keys keep the smaller θ': the
      cached answer is not that of reading the whole text at once.

    A second extension counts s from L again.
    """
    return positions.rescaled("dynamic", factor=positions.context_length / positions.original_context)


def yarn(positions: Positions, options: Mapping[str, Any]) -> dict[str, Any]:
    """YaRN (Peng et al., arXiv 2309.00071, definitions 2 and 3): interpolate slow pairs, leave fast ones, blend others.

    ω_i · ((1-γ_i)/s + γ_i), and cos and sin times `attention_factor`, 0.1·ln(s) + 1 unless given (or the quotient of
    0.1·mscale·ln(s) + 1 and the same with mscale_all_dim). γ is 1 where a pair turns more than `beta_fast` times within
    L, 0 where fewer than `beta_slow` times. Between, γ falls evenly over the pairs' numbers, as in the authors' code;
    in the paper it is linear in the number of turns. `truncate` rounds the ends of the ramp outwards to whole pairs.

    A second extension counts s from L again, and keeps what the model has set unless it is set anew.
    """
    factor = positions.context_length / positions.original_context
    chosen = {**_own(positions, "yarn"), **options}
    if "attention_factor" in options and ("mscale" in options or "mscale_all_dim" in options):
        raise ConfigError("rope.attention_factor takes the place of mscale and mscale_all_dim; give one or the other")
    if ("mscale" in chosen) != ("mscale_all_dim" in chosen):
        raise ConfigError("rope.mscale and rope.mscale_all_dim work only together; give both or neither")
    if (beta_fast := chosen.get("beta_fast", 32)) <= (beta_slow := chosen.get("beta_slow", 1)):
        raise ConfigError(f"rope.beta_fast={beta_fast} must exceed rope.beta_slow={beta_slow}")
    _settle_attention_factor(positions, chosen, options, _yarn_attention_factor(chosen, positions.parameters))
    return positions.rescaled(
        "yarn", factor=factor, original_max_position_embeddings=positions.original_context, **chosen
    )


def llama3(positions: Positions, options: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3.1's scaling (`apply_scaling` in Meta's llama-models; no paper): by wavelength; cos and sin stay as large.

    ω_i / s where λ_i > L / `low_freq_factor` (1 unless given), ω_i where λ_i < L / `high_freq_factor` (4), and between
    (1-t)·ω_i/s + t·ω_i with t = (L/λ_i - low) / (high - low).

    s is C / L unless `factor` is given. A second extension counts from L again, but never falls behind growing in step
    with the context: Llama 3.2 has s = 32 at 16 times L, and s = C / L would leave it unchanged at 32 times L. So
    s = max(C / L, s_present · C / (what is read now)).
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
    """LongRoPE (Ding et al., arXiv 2402.13753, section 3): a factor for every pair, found by search; not searched here.

    ω_i / long_factor_i where the sequence is longer than L, ω_i / short_factor_i where it is not (ones unless given).
    cos and sin times `attention_factor`, √(1 + ln s / ln L) with s = C / L unless given (as in Phi-3).

    - The length is the longest position of the batch + 1: a row of packed documents that are all shorter than L trains
      the short factors. Training at the full length trains the long ones.
    - Keys are cached after they were turned. A text that grows beyond L while it is generated keeps its first L keys
      under the short factors, unless the cache is thrown away there.

    A second extension takes new long factors and counts s from L again; the short factors are kept unless given.
    """
    num_pairs = positions.rotary_dim // 2
    if "long_factor" not in options:
        raise ConfigError(f"rope.rope_type=longrope needs rope.long_factor, {num_pairs} numbers found by a search")
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
    "linear": linear,
    "dynamic": dynamic,
    "yarn": yarn,
    "llama3": llama3,
    "longrope": longrope,
    "theta": theta,
}
assert set(METHODS) == set(OPTIONS) == set(get_args(RopeType))


def check_present(positions: Positions, wanted: str) -> None:
    """Refuse to lay one scaling over another: transformers has no form that holds both.

    Raises:
        ConfigError: the model's positions are scaled otherwise.
    """
    present = positions.rope_type
    if present in ("default", wanted) or (wanted == "theta" and present in ("linear", "proportional")):
        return
    if present == "linear":
        remedy = "use linear or theta, which add to it, or start from the model as it was before"
    elif present in METHODS:
        remedy = f"use rope.rope_type: {present}, which counts from the {positions.original_context} tokens before that"
    else:
        remedy = "use theta" if present == "proportional" else "it cannot be extended"
    raise ConfigError(
        f"the model's positions are already scaled by {present!r}, and {wanted!r} cannot be laid over that; {remedy}"
    )


def _own(positions: Positions, rope_type: str) -> dict[str, Any]:
    """What the model itself has set for a scaling that is now to be extended."""
    parameters = positions.parameters if positions.rope_type == rope_type else {}
    return {key: parameters[key] for key in OPTIONS[rope_type] if parameters.get(key) is not None and key != "factor"}


def _settle_attention_factor(
    positions: Positions, chosen: dict[str, Any], options: Mapping[str, Any], usual: float
) -> None:
    """Let transformers compute the attention factor anew unless it is given; the model's own was for its own factor."""
    if "attention_factor" in options:
        chosen["attention_factor"] = float(options["attention_factor"])
        chosen.pop("mscale", None)
        chosen.pop("mscale_all_dim", None)
    elif "mscale" in options:  # checked to come with mscale_all_dim; transformers would prefer the factor to both
        chosen.pop("attention_factor", None)
    elif (own := chosen.pop("attention_factor", None)) is not None and not math.isclose(own, usual, rel_tol=1e-3):
        raise ConfigError(
            f"the model sets an attention_factor of its own, {own:g}, for its present factor "
            f"{positions.parameters.get('factor')}; say with rope.attention_factor what it is to be"
        )


def _yarn_attention_factor(chosen: Mapping[str, Any], parameters: Mapping[str, Any]) -> float:
    """What transformers computes for the present parameters if they give none."""
    factor = parameters.get("factor") or 1.0
    numerator, denominator = (
        0.1 * chosen[name] * math.log(factor) + 1 if name in chosen else 1.0 for name in ("mscale", "mscale_all_dim")
    )
    return numerator / denominator if "mscale" in chosen else 0.1 * math.log(factor) + 1
