"""What programs other than transformers 5 make of positions: one table for the merge, its documentation and its tests.

transformers 4.51 was measured, and llama.cpp with the converter and the library of llama_cpp_python 0.3.36; of vLLM the
source was read (`get_rope`, 2026). What is not said to be misread is either read right or not known.
"""

from collections.abc import Mapping
from typing import Any

from longlora.errors import ConfigError
from longlora.rope.extend import extended_parameters
from longlora.rope.v4 import v4_rope

TRANSFORMERS_4 = "transformers 4"
# Of YaRN, with the values that readers take where nothing is said.
_YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
_ATTENTION = ("attention_factor", "mscale", "mscale_all_dim")
# llama.cpp's converter leaves all of it out for these, θ included.
_WITHOUT_POSITIONS = ("gemma", "gemma2")
_LLAMA3_READ = ("llama", "mistral")
_LLAMA_CPP_THETA = 10_000.0


def misread(rope_parameters: Mapping[str, Any], *, model_type: str) -> dict[str, str]:
    """Tell which readers do not compute the positions that transformers 5 does, and what it is that they miss."""
    parameters = extended_parameters(rope_parameters)
    found = {
        TRANSFORMERS_4: _by_transformers4(rope_parameters, model_type),
        "llama.cpp": _by_llama_cpp(parameters, model_type),
        "vLLM": _by_vllm(parameters),
    }
    return {reader: missed for reader, missed in found.items() if missed}


def _by_transformers4(rope_parameters: Mapping[str, Any], model_type: str) -> str:
    try:
        v4_rope(rope_parameters, model_type=model_type)
    except ConfigError as error:
        return str(error).removeprefix(f"{TRANSFORMERS_4} ")
    return ""


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
