"""Positions are scaled from the model's true state, in transformers' parameters; contradictions are refused."""

import math
from typing import Any

import pytest

from longlora.errors import ConfigError
from longlora.rope.extend import RopeExtension, describe_rope, extend_rope, present_context

DEFAULT = {"rope_type": "default", "rope_theta": 500_000.0}
LLAMA_31 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QWEN_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}
LONG = [1.0 + pair for pair in range(32)]
PHI_3 = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 1.0,
    "short_factor": [1.0] * 32,
    "long_factor": LONG,
    "original_max_position_embeddings": 4096,
}


def extended(parameters: dict[str, Any], present: int, new: int, rope_type: str, **named: Any) -> RopeExtension:
    base_context = named.pop("base_context", None)
    return extend_rope(
        parameters,
        max_position_embeddings=present,
        context_length=new,
        head_dim=64,
        rope_type=rope_type,
        base_context=base_context,
        options=named,
    )


def twice(rope_type: str, **named: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters after 4k -> 32k -> 64k, and after 4k -> 64k at once."""
    first = extended(DEFAULT, 4096, 32768, rope_type, **named)
    second = extended(first.rope_parameters, first.max_position_embeddings, 65536, rope_type, **named)
    assert (second.base_context, second.context_length) == (32768, 65536)
    return second.rope_parameters, extended(DEFAULT, 4096, 65536, rope_type, **named).rope_parameters


def test_linear_interpolation_keeps_theta() -> None:
    parameters = extended(DEFAULT, 4096, 32768, "linear").rope_parameters
    assert parameters == {"rope_type": "linear", "rope_theta": 500_000.0, "factor": 8.0}


def test_the_factor_is_the_exact_quotient() -> None:
    assert extended(DEFAULT, 4096, 10000, "linear").rope_parameters["factor"] == 10000 / 4096


@pytest.mark.parametrize(
    ("rope_type", "options"),
    [
        ("linear", {}),
        ("dynamic", {}),
        ("yarn", {}),
        ("yarn", {"beta_fast": 16.0}),
        ("llama3", {}),
        ("longrope", {"long_factor": LONG}),
        ("theta", {}),
    ],
)
def test_two_extensions_are_one(rope_type: str, options: dict[str, Any]) -> None:
    in_two, at_once = twice(rope_type, **options)
    assert in_two.keys() == at_once.keys()
    for key, value in at_once.items():
        assert in_two[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key


@pytest.mark.parametrize("rope_type", ["dynamic", "yarn", "llama3", "longrope"])
def test_the_factor_counts_from_the_original_context(rope_type: str) -> None:
    in_two, _ = twice(rope_type, **({"long_factor": LONG} if rope_type == "longrope" else {}))
    assert in_two["factor"] == 16.0
    assert in_two.get("original_max_position_embeddings", 4096) == 4096


def test_dynamic_scaling_leaves_the_configurations_length_where_it_counts_from() -> None:
    extension = extended(DEFAULT, 4096, 32768, "dynamic")
    assert (extension.max_position_embeddings, extension.context_length) == (4096, 32768)
    assert present_context(extension.rope_parameters, 4096) == 32768
    assert extended(DEFAULT, 8192, 32768, "dynamic", base_context=4096).max_position_embeddings == 4096


def test_theta_is_ntk_aware_or_given() -> None:
    parameters = extended(DEFAULT, 4096, 32768, "theta").rope_parameters
    assert parameters == {"rope_type": "default", "rope_theta": pytest.approx(500_000 * 8 ** (64 / 62))}
    assert extended(DEFAULT, 4096, 32768, "theta", rope_theta=1e7).rope_parameters["rope_theta"] == 1e7


def test_a_larger_base_and_interpolation_add_up() -> None:
    interpolated = extended(DEFAULT, 4096, 8192, "linear").rope_parameters
    both = extended(interpolated, 8192, 32768, "theta").rope_parameters
    assert both == {"rope_type": "linear", "factor": 2.0, "rope_theta": pytest.approx(500_000 * 4 ** (64 / 62))}


def test_what_does_not_scale_is_kept() -> None:
    partial = {**DEFAULT, "partial_rotary_factor": 0.25}
    for rope_type in ("linear", "dynamic", "yarn", "llama3", "theta"):
        assert extended(partial, 4096, 8192, rope_type).rope_parameters["partial_rotary_factor"] == 0.25
    # d is 16 then, of a head's 64
    assert extended(partial, 4096, 8192, "theta").rope_parameters["rope_theta"] == 500_000 * 2 ** (16 / 14)


def test_llama_3_1_is_extended_from_its_8192_tokens() -> None:
    extension = extended(LLAMA_31, 131072, 262144, "llama3")
    assert extension.base_context == 131072
    assert extension.rope_parameters == {**LLAMA_31, "factor": 32.0}
    assert extended(LLAMA_31, 131072, 262144, "llama3", factor=16.0).rope_parameters["factor"] == 16.0


def test_llama_3_2_grows_though_it_was_ahead_of_its_context() -> None:
    llama_32 = {**LLAMA_31, "factor": 32.0}  # at 16 times 8192 tokens
    assert extended(llama_32, 131072, 262144, "llama3").rope_parameters["factor"] == 64.0


def test_a_model_with_yarn_by_hand_reads_more_than_its_configuration_says() -> None:
    assert present_context(QWEN_YARN, 32768) == 131072
    assert present_context(QWEN_YARN, 40960) == 131072  # Qwen3, whose number includes the answer
    extension = extended(QWEN_YARN, 32768, 262144, "yarn")
    assert extension.base_context == 131072
    assert extension.rope_parameters == {**QWEN_YARN, "factor": 8.0}


def test_an_attention_factor_that_was_the_usual_one_follows_the_factor() -> None:
    olmo = {**QWEN_YARN, "attention_factor": 0.1 * math.log(4) + 1, "beta_fast": 32.0}
    parameters = extended(olmo, 131072, 262144, "yarn").rope_parameters
    assert parameters == {**QWEN_YARN, "factor": 8.0, "beta_fast": 32.0}
    phi = {**PHI_3, "attention_factor": math.sqrt(1 + math.log(32) / math.log(4096))}
    assert "attention_factor" not in extended(phi, 131072, 262144, "longrope", long_factor=LONG).rope_parameters


def test_an_attention_factor_of_the_models_own_must_be_said_anew() -> None:
    own = {**QWEN_YARN, "attention_factor": 1.3}
    with pytest.raises(ConfigError, match=r"sets an attention_factor of its own, 1\.3, for its present factor 4\.0"):
        extended(own, 131072, 262144, "yarn")
    assert extended(own, 131072, 262144, "yarn", attention_factor=1.4).rope_parameters["attention_factor"] == 1.4
    weights = {"mscale": 0.5, "mscale_all_dim": 1.0}
    assert extended(own, 131072, 262144, "yarn", **weights).rope_parameters == {**QWEN_YARN, "factor": 8.0, **weights}
    deepseek = {**QWEN_YARN, "mscale": 0.7, "mscale_all_dim": 1.0}
    assert extended(deepseek, 131072, 262144, "yarn").rope_parameters == {**deepseek, "factor": 8.0}
    given = extended(deepseek, 131072, 262144, "yarn", attention_factor=1.4).rope_parameters
    assert given == {**QWEN_YARN, "factor": 8.0, "attention_factor": 1.4}


def test_longrope_keeps_the_short_factors_and_the_original_context() -> None:
    longer = [2 * number for number in LONG]
    parameters = extended(PHI_3, 131072, 262144, "longrope", long_factor=longer).rope_parameters
    assert parameters == {**PHI_3, "long_factor": longer, "factor": 64.0}


@pytest.mark.parametrize(
    ("present", "length", "rope_type", "expected"),
    [
        (LLAMA_31, 131072, "linear", "by 'llama3', which cannot be combined with 'linear'; use rope.rope_type: llama3"),
        (LLAMA_31, 131072, "theta", "which scales from the original 8192 tokens"),
        (QWEN_YARN, 32768, "linear", "use rope.rope_type: yarn, which scales from the original 32768"),
        (PHI_3, 131072, "theta", "use rope.rope_type: longrope"),
        ({**DEFAULT, "rope_type": "dynamic", "factor": 2.0}, 4096, "yarn", "use rope.rope_type: dynamic"),
        ({**DEFAULT, "rope_type": "linear", "factor": 2.0}, 8192, "yarn", "use linear or theta"),
        ({**DEFAULT, "rope_type": "proportional"}, 8192, "linear", "use theta"),
        ({**DEFAULT, "rope_type": "axial"}, 8192, "linear", "it cannot be extended"),
    ],
)
def test_one_scaling_is_not_laid_over_another(
    present: dict[str, Any], length: int, rope_type: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        extended(present, length, 1_000_000, rope_type)


@pytest.mark.parametrize(
    ("rope_type", "options", "expected"),
    [
        ("cubic", {}, "'cubic' is unknown; use one of linear"),
        ("linear", {"beta_fast": 32.0}, "rope.beta_fast belongs to yarn, not to rope.rope_type=linear"),
        ("yarn", {"colour": 1}, "rope.colour belongs to no type"),
        ("theta", {"rope_theta": 10.0}, "rope_theta=10 must exceed the model's own, 500000"),
        ("yarn", {"beta_fast": 1.0, "beta_slow": 2.0}, "beta_fast=1.0 must exceed rope.beta_slow=2.0"),
        ("yarn", {"mscale": 1.0}, "only together"),
        ("yarn", {"mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.0}, "give one or the other"),
        ("llama3", {"low_freq_factor": 4.0}, "high_freq_factor=4.0 must exceed rope.low_freq_factor=4.0"),
        ("llama3", {"factor": 1.0}, "factor=1 must exceed the present factor, 1"),
        ("longrope", {}, "needs rope.long_factor, 32 numbers"),
        ("longrope", {"long_factor": [1.0]}, "rope.long_factor has 1 numbers; this model needs 32"),
        ("longrope", {"long_factor": LONG, "short_factor": [1.0]}, "rope.short_factor has 1 numbers"),
    ],
)
def test_options_that_cannot_be_followed(rope_type: str, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        extended(DEFAULT, 4096, 8192, rope_type, **options)


@pytest.mark.parametrize("context_length", [4096, 100])
def test_a_context_that_is_not_longer(context_length: int) -> None:
    expected = f"context_length={context_length} must exceed the 4096 tokens .*; choose a longer one"
    with pytest.raises(ConfigError, match=expected):
        extended(DEFAULT, 4096, context_length, "linear")


def test_only_full_attention_is_extended() -> None:
    gemma = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": {**DEFAULT}}
    parameters = extended(gemma, 4096, 8192, "linear").rope_parameters
    assert parameters["sliding_attention"] == gemma["sliding_attention"]
    assert parameters["full_attention"] == {**DEFAULT, "rope_type": "linear", "factor": 2.0}
    assert describe_rope(parameters) == "linear, factor 2, theta 500000"
    assert gemma["full_attention"] == DEFAULT
    with pytest.raises(ConfigError, match="truncate has no effect"):
        extended(gemma, 4096, 8192, "yarn", truncate=False)
    for without in ({"sliding_attention": DEFAULT}, {**gemma, "full_attention": None}):
        with pytest.raises(ConfigError, match="not for full_attention"):
            extended(without, 4096, 8192, "linear")
        assert present_context(without, 4096) == 4096
