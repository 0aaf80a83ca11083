"""How programs other than transformers 5 read positions: the keys they need, and what they misread.

transformers 5 has everything in `rope_parameters`. transformers 4, and programs written for it (vLLM, llama.cpp's
converter), expect θ in `rope_theta` and the scaling in `rope_scaling`. A reader that does not know `rope_parameters`
silently uses its default θ and no scaling. Tested with transformers 4.51, and with llama.cpp's converter and the
library in llama_cpp_python 0.3.36; for vLLM the source was read (`get_rope`, 2026). Positions not listed as misread are
either read correctly or were not checked.
"""

from collections.abc import Mapping
from typing import Any

from longlora.errors import ConfigError
from longlora.rope.extend import FULL_ATTENTION, extended_parameters
from longlora.rope.methods import LENGTH_DEPENDENT

TRANSFORMERS_4 = "transformers 4"
# Options of YaRN, with the defaults of the readers.
_YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
_ATTENTION = ("attention_factor", "mscale", "mscale_all_dim")
# llama.cpp's converter omits everything for these, including θ.
_WITHOUT_POSITIONS = ("gemma", "gemma2")
_LLAMA3_READ = ("llama", "mistral")
_LLAMA_CPP_THETA = 10_000.0
_SLIDING_ATTENTION = "sliding_attention"
# Was next to `rope_scaling`, not in it.
_PARTIAL = "partial_rotary_factor"
_OUTSIDE = ("rope_theta", "rope_type", "type", _PARTIAL)
# Accept exactly a type and a factor, and not the type under both names.
_TWO_FIELDS = ("olmo", "olmo2")
_UNSCALED = ("nemotron",)  # ignores `rope_scaling`


def misread(rope_parameters: Mapping[str, Any], *, model_type: str) -> dict[str, str]:
    """Return the readers that compute other positions than transformers 5, and what each of them misreads."""
    parameters = extended_parameters(rope_parameters)
    found = {"llama.cpp": _by_llama_cpp(parameters, model_type), "vLLM": _by_vllm(parameters)}
    try:
        older_keys(rope_parameters, model_type=model_type)
    except ConfigError as error:
        found = {TRANSFORMERS_4: str(error).removeprefix(f"{TRANSFORMERS_4} "), **found}
    return {reader: missed for reader, missed in found.items() if missed}


def _by_llama_cpp(parameters: Mapping[str, Any], model_type: str) -> str:
    rope_type = parameters.get("rope_type", "default")
    if model_type in _WITHOUT_POSITIONS:
        is_plain = rope_type == "default" and parameters["rope_theta"] == _LLAMA_CPP_THETA
        return "" if is_plain else f"its converter omits the positions of {model_type}"
    if rope_type == "llama3":
        return "" if model_type in _LLAMA3_READ else f"llama3 scaling of {model_type} is lost"
    if rope_type in LENGTH_DEPENDENT:
        return f"{rope_type} scaling is lost"
    others = [name for name, usual in _YARN_DEFAULTS.items() if parameters.get(name, usual) != usual]
    return _of_yarn(parameters, (*others, *_ATTENTION), "read wrongly or not at all")


def _by_vllm(parameters: Mapping[str, Any]) -> str:
    if parameters.get("rope_type") == "dynamic":
        return "dynamic scaling is always that for the full length, whatever the text's length"
    if parameters.get("rope_type") == "longrope" and parameters.get("attention_factor") is not None:
        return "attention_factor of longrope is not read"
    return _of_yarn(parameters, _ATTENTION, "not read")


def _of_yarn(parameters: Mapping[str, Any], names: tuple[str, ...], how: str) -> str:
    given = [name for name in names if parameters.get(name) is not None]
    if parameters.get("rope_type") != "yarn" or not given:
        return ""
    return f"{', '.join(given)} of yarn {'is' if len(given) == 1 else 'are'} {how}"


def older_keys(rope_parameters: Mapping[str, Any], *, model_type: str) -> dict[str, Any]:
    """Return the keys to add to a `config.json` for transformers 4; `rope_scaling` has both `rope_type` and `type`.

    - transformers 5 reads the same positions from a file with both sets of keys, plus `type`.
    - LongRoPE's original context was at the top level (`original_max_position_embeddings`), and is written there too.
      Phi-3 rejects a `rope_scaling` with other than three keys, so it gets these. transformers 5 then warns of the
      missing `factor`, as for Microsoft's own files, and computes the same one.
    - GPT-NeoX had its own names for θ and the rotated part, Gemma 3 for the θ of sliding windows.
    - OLMo and OLMo 2 reject a `rope_scaling` with more than two keys. Nemotron ignores it.
    - YaRN's original context is read from `rope_scaling` since transformers 4.50; earlier versions ignore it.

    Raises:
        ConfigError: the older keys cannot express these positions.
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
        raise ConfigError(f"transformers 4 does not support positions of rope_type {rope_type!r}")
    if rope_type == "yarn" and parameters.get("truncate") is False:
        raise ConfigError("transformers 4 does not support yarn's truncate: false, and would round the ramp's ends")
    if model_type in _UNSCALED:
        raise ConfigError(f"transformers 4 does not scale the positions of {model_type}")
    scaling = {key: value for key, value in parameters.items() if key not in _OUTSIDE}
    if model_type in _TWO_FIELDS:
        if rope_type not in ("linear", "dynamic"):
            raise ConfigError(f"transformers 4 does not support {rope_type} scaling for {model_type}")
        return {"type": rope_type, "factor": float(scaling["factor"])}
    if model_type != "phi3":
        return {"rope_type": rope_type, "type": rope_type, **scaling}
    if "attention_factor" in scaling:
        raise ConfigError("transformers 4 does not accept an attention_factor in the rope_scaling of phi3")
    return {"type": rope_type, "short_factor": scaling["short_factor"], "long_factor": scaling["long_factor"]}


def _sliding(rope_parameters: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Return the key for the θ of sliding-window layers, if the model type has one."""
    sliding = rope_parameters.get(_SLIDING_ATTENTION) or {}
    unscaled = set(rope_parameters) == {FULL_ATTENTION, _SLIDING_ATTENTION} and sliding.get("rope_type") == "default"
    if unscaled and model_type == "gemma3_text":
        return {"rope_local_base_freq": sliding["rope_theta"]}
    if unscaled and model_type == "olmo3" and sliding["rope_theta"] == rope_parameters[FULL_ATTENTION]["rope_theta"]:
        return {}  # one θ for all layers, and scaling only for full attention
    raise ConfigError(f"transformers 4 has no keys for these positions of {model_type}, which differ by kind of layer")
