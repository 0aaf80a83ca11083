"""The keys in which transformers 4, and what was written for it (vLLM, llama.cpp's converter), look for positions.

transformers 5 keeps all of it in `rope_parameters`. Before, θ stood by itself in `rope_theta`, and a scaling in
`rope_scaling`. A reader that does not know `rope_parameters` takes its default θ and no scaling, in silence.
"""

from collections.abc import Mapping
from typing import Any

from longlora.errors import ConfigError
from longlora.rope.extend import FULL_ATTENTION, extended_parameters

_SLIDING_ATTENTION = "sliding_attention"
# Stood beside `rope_scaling`, not in it.
_PARTIAL = "partial_rotary_factor"
_OUTSIDE = ("rope_theta", "rope_type", "type", _PARTIAL)
# Took a type and a factor, and nothing else, not even the type a second time.
_TWO_FIELDS = ("olmo", "olmo2")
_UNSCALED = ("nemotron",)  # never looked at `rope_scaling`


def v4_rope(rope_parameters: Mapping[str, Any], *, model_type: str) -> dict[str, Any]:
    """Compute the keys to add to a `config.json`; `rope_scaling` names its type both as `rope_type` and as `type`.

    - transformers 5 reads a file with both spellings to the same positions; it then finds `type` in them too.
    - LongRoPE's original context stood at the top (`original_max_position_embeddings`); it is written there as well.
      Phi-3 refused a `rope_scaling` of other than three keys, so it gets those. transformers 5 then asks for a `factor`
      in a warning, as it does for Microsoft's own files, and computes the same one.
    - GPT-NeoX had names of its own for θ and the rotated part. Gemma 3 had one for the θ of sliding windows.
    - OLMo and OLMo 2 refused a `rope_scaling` of more than two keys. Nemotron never looked at it.
    - YaRN's original context was read from `rope_scaling` from transformers 4.50 on; earlier versions ignored it.

    Raises:
        ConfigError: the older keys have no room for these positions.
    """
    parameters = extended_parameters(rope_parameters)
    theta, rotated_part = ("rotary_emb_base", "rotary_pct") if model_type == "gpt_neox" else ("rope_theta", _PARTIAL)
    keys = {theta: parameters["rope_theta"], "rope_scaling": _scaling(parameters, model_type)}
    if parameters.get(_PARTIAL) is not None:
        keys[rotated_part] = parameters[_PARTIAL]
    if parameters.get("rope_type") == "longrope":
        keys["original_max_position_embeddings"] = parameters["original_max_position_embeddings"]
    if parameters is not rope_parameters:
        keys |= _sliding(rope_parameters, model_type)
    return keys


def _scaling(parameters: Mapping[str, Any], model_type: str) -> dict[str, Any] | None:
    rope_type = parameters.get("rope_type", "default")
    if rope_type == "default":
        return None
    if rope_type not in ("linear", "dynamic", "yarn", "llama3", "longrope"):
        raise ConfigError(f"transformers 4 does not know positions of rope_type {rope_type!r}")
    if rope_type == "yarn" and parameters.get("truncate") is False:
        raise ConfigError("transformers 4 does not know truncate: false of yarn, and would round the ramp's ends")
    if model_type in _UNSCALED:
        raise ConfigError(f"transformers 4 does not scale the positions of {model_type}")
    scaling = {key: value for key, value in parameters.items() if key not in _OUTSIDE}
    if model_type in _TWO_FIELDS:
        if rope_type not in ("linear", "dynamic"):
            raise ConfigError(f"transformers 4 does not take {rope_type} scaling for {model_type}")
        return {"type": rope_type, "factor": float(scaling["factor"])}
    if model_type != "phi3":
        return {"rope_type": rope_type, "type": rope_type, **scaling}
    if "attention_factor" in scaling:
        raise ConfigError("transformers 4 has no room for an attention_factor in the rope_scaling of phi3")
    return {"type": rope_type, "short_factor": scaling["short_factor"], "long_factor": scaling["long_factor"]}


def _sliding(rope_parameters: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The θ of layers with a sliding window, where a model type had a key for it."""
    sliding = rope_parameters.get(_SLIDING_ATTENTION) or {}
    unscaled = set(rope_parameters) == {FULL_ATTENTION, _SLIDING_ATTENTION} and sliding.get("rope_type") == "default"
    if unscaled and model_type == "gemma3_text":
        return {"rope_local_base_freq": sliding["rope_theta"]}
    if unscaled and model_type == "olmo3" and sliding["rope_theta"] == rope_parameters[FULL_ATTENTION]["rope_theta"]:
        return {}  # θ for all layers, and the scaling for full attention only
    raise ConfigError(f"transformers 4 has no keys for these positions of {model_type}, which differ by kind of layer")
