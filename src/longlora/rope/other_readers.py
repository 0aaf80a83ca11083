"""What programs other than transformers 5 make of positions: the keys they look for, and who misreads what.

transformers 5 keeps all in `rope_parameters`. Before, and in what was written for it (vLLM, llama.cpp's converter), θ
stood by itself in `rope_theta` and a scaling in `rope_scaling`. A reader that does not know `rope_parameters` takes its
default θ and no scaling, in silence. transformers 4.51 was measured, and llama.cpp with the converter and the library
of llama_cpp_python 0.3.36; of vLLM the source was read (`get_rope`, 2026). What is not said to be misread is either
read right or not known.
"""

from collections.abc import Mapping
from typing import Any

from longlora.errors import ConfigError
from longlora.rope.extend import FULL_ATTENTION, extended_parameters

TRANSFORMERS_4 = "transformers 4"
# Of YaRN, with the values that readers take where nothing is said.
_YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
_ATTENTION = ("attention_factor", "mscale", "mscale_all_dim")
# llama.cpp's converter leaves all of it out for these, θ included.
_WITHOUT_POSITIONS = ("gemma", "gemma2")
_LLAMA3_READ = ("llama", "mistral")
_LLAMA_CPP_THETA = 10_000.0
_SLIDING_ATTENTION = "sliding_attention"
# Stood beside `rope_scaling`, not in it.
_PARTIAL = "partial_rotary_factor"
_OUTSIDE = ("rope_theta", "rope_type", "type", _PARTIAL)
# Took a type and a factor, and nothing else, not even the type a second time.
_TWO_FIELDS = ("olmo", "olmo2")
_UNSCALED = ("nemotron",)  # never looked at `rope_scaling`


def misread(rope_parameters: Mapping[str, Any], *, model_type: str) -> dict[str, str]:
    """Tell which readers do not compute the positions that transformers 5 does, and what it is that they miss."""
    parameters = extended_parameters(rope_parameters)
    found = {"llama.cpp": _by_llama_cpp(parameters, model_type), "vLLM": _by_vllm(parameters)}
    try:
        v4_rope(rope_parameters, model_type=model_type)
    except ConfigError as error:
        found = {TRANSFORMERS_4: str(error).removeprefix(f"{TRANSFORMERS_4} "), **found}
    return {reader: missed for reader, missed in found.items() if missed}


def _by_llama_cpp(parameters: Mapping[str, Any], model_type: str) -> str:
    rope_type = parameters.get("rope_type", "default")
    if model_type in _WITHOUT_POSITIONS:
        is_plain = rope_type == "default" and parameters["rope_theta"] == _LLAMA_CPP_THETA
        return "" if is_plain else f"its converter leaves the positions of {model_type} out"
    if rope_type == "llama3":
        return "" if model_type in _LLAMA3_READ else f"llama3 scaling of {model_type} is lost"
    if rope_type in ("dynamic", "longrope"):
        return f"{rope_type} scaling is lost"
    others = [name for name, usual in _YARN_DEFAULTS.items() if parameters.get(name, usual) != usual]
    return _of_yarn(parameters, (*others, *_ATTENTION), "read wrongly or not at all")


def _by_vllm(parameters: Mapping[str, Any]) -> str:
    if parameters.get("rope_type") == "dynamic":
        return "dynamic scaling is that of the full length whatever the text's"
    if parameters.get("rope_type") == "longrope" and parameters.get("attention_factor") is not None:
        return "attention_factor of longrope is not read"
    return _of_yarn(parameters, _ATTENTION, "not read")


def _of_yarn(parameters: Mapping[str, Any], names: tuple[str, ...], how: str) -> str:
    given = [name for name in names if parameters.get(name) is not None]
    if parameters.get("rope_type") != "yarn" or not given:
        return ""
    return f"{', '.join(given)} of yarn {'is' if len(given) == 1 else 'are'} {how}"


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
