"""Models that transformers builds from the extended parameters turn by the papers' angles, and reload as they were."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rope import formulas
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    FalconConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SmolLM3Config,
)

from longlora.errors import ConfigError
from longlora.models.positions import (
    extend_positions,
    readable_context,
    rotary_parameters,
    set_positions,
    without_dynamic_scaling,
)

ORIGINAL, NEW = 64, 256
SIZES = {"vocab_size": 40, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"max_position_embeddings": ORIGINAL, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
THETA = {"rope_type": "default", "rope_theta": 5000.0}
LONG = [1.0 + 0.2 * pair for pair in range(16)]
SHORT = [1.0 + 0.01 * pair for pair in range(16)]

# Every head has 32 dimensions; how many of them turn, and which attribute holds the frequencies.
FAMILIES: dict[str, tuple[Any, int, str]] = {
    "llama": (lambda: LlamaConfig(**SIZES, rope_parameters={**THETA}), 32, ""),
    "gpt_neox": (
        lambda: GPTNeoXConfig(**SIZES, rope_parameters={**THETA, "partial_rotary_factor": 0.25}),
        8,
        "",
    ),
    "gemma3": (
        lambda: Gemma3TextConfig(
            **SIZES,
            head_dim=32,
            num_key_value_heads=1,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": {**THETA},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        ),
        32,
        "full_attention_",
    ),
    "phi3": (lambda: Phi3Config(**SIZES, rope_parameters={**THETA}), 32, ""),
}
CASES = [
    *((family, kind) for family in ("llama", "gpt_neox", "gemma3") for kind in ("linear", "theta", "yarn", "llama3")),
    *((family, "dynamic") for family in ("llama", "gpt_neox", "gemma3")),
    *((family, kind) for family in ("llama", "phi3") for kind in ("longrope", "theta")),
]


@pytest.fixture(autouse=True)
def no_warning_of_transformers(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # to caplog
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def options_for(kind: str) -> dict[str, Any]:
    return {"longrope": {"short_factor": SHORT, "long_factor": LONG}, "yarn": {"beta_fast": 8.0}}.get(kind, {})


def expected_rope(kind: str, d: int, length: int) -> formulas.Rope:
    span = {"original": ORIGINAL, "new": NEW}
    match kind:
        case "linear":
            return formulas.linear(5000.0, d, **span)
        case "theta":
            return formulas.ntk_aware(5000.0, d, **span)
        case "dynamic":
            return formulas.dynamic(5000.0, d, length=length, **span)
        case "yarn":
            return formulas.yarn(5000.0, d, fast=8.0, **span)
        case "llama3":
            return formulas.llama3(5000.0, d, **span)
    return formulas.longrope(5000.0, d, length=length, short=SHORT, long=LONG, **span)


def build(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def turn(model: PreTrainedModel, positions: Tensor, prefix: str) -> tuple[Tensor, Tensor]:
    """Cos and sin (T, d) that layers of full attention turn by."""
    rotary = model.base_model.rotary_emb
    kind = {"layer_type": prefix.removesuffix("_")} if prefix else {}
    cos, sin = rotary(torch.zeros(1, 1, 64), positions[None], **kind)
    return cos[0], sin[0]


@pytest.mark.parametrize("length", [ORIGINAL - 3, NEW + 9], ids=["short", "long"])
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_models_turn_by_the_papers_formula(family: str, kind: str, length: int, seed: int) -> None:
    make, d, prefix = FAMILIES[family]
    config = make()
    extend_positions(config, context_length=NEW, rope_type=kind, options=options_for(kind))
    model = build(config, seed)
    positions = torch.arange(length)
    cos, sin = turn(model, positions, prefix)
    frequencies, factor = expected_rope(kind, d, length)
    angles = positions.double()[:, None] * torch.tensor(frequencies * 2, dtype=torch.double)  # (T, d)
    torch.testing.assert_close(cos.double(), angles.cos() * factor, atol=2e-4, rtol=0)
    torch.testing.assert_close(sin.double(), angles.sin() * factor, atol=2e-4, rtol=0)
    inv_freq = getattr(model.base_model.rotary_emb, f"{prefix}inv_freq")
    torch.testing.assert_close(inv_freq, torch.tensor(frequencies), rtol=1e-5, atol=0)
    wrong = angles * 1.0001  # the tolerance can fail
    assert not torch.allclose(cos.double(), wrong.cos() * factor, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_an_extended_model_reloads_with_the_same_logits(family: str, kind: str, seed: int, tmp_path: Path) -> None:
    config = FAMILIES[family][0]()
    extend_positions(config, context_length=NEW, rope_type=kind, options=options_for(kind))
    model = build(config, seed)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert readable_context(reloaded.config) == NEW
    tokens = torch.randint(40, (1, NEW), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for length in (ORIGINAL // 2, NEW):  # short first: dynamic scaling remembers the longest
            expected = model(input_ids=tokens[:, :length]).logits
            torch.testing.assert_close(reloaded(input_ids=tokens[:, :length]).logits, expected)
    unextended = AutoModelForCausalLM.from_pretrained(tmp_path, config=FAMILIES[family][0]()).eval()
    assert (unextended(input_ids=tokens).logits - expected).abs().max() > 1e-4  # at least 1e-3 in 379 cases


def test_sliding_layers_keep_their_positions(seed: int) -> None:
    config = FAMILIES["gemma3"][0]()
    extend_positions(config, context_length=NEW, rope_type="linear")
    rotary = build(config, seed).base_model.rotary_emb
    torch.testing.assert_close(rotary.sliding_attention_inv_freq, torch.tensor(formulas.plain(300.0, 32)))


def test_dynamic_scaling_with_a_cache_is_not_that_of_the_whole_text(seed: int) -> None:
    """What the docstring says of keys that were cached: a property of transformers, noted so that its end is seen."""
    config = FAMILIES["llama"][0]()
    extend_positions(config, context_length=NEW, rope_type="dynamic")
    tokens = torch.randint(40, (1, NEW), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model = build(config, seed)
        cache = model(input_ids=tokens[:, :ORIGINAL], use_cache=True).past_key_values
        stepwise = model(input_ids=tokens[:, ORIGINAL:], past_key_values=cache).logits[:, -1]
        whole = build(config, seed)(input_ids=tokens).logits[:, -1]
    assert (stepwise - whole).abs().max() > 1e-4  # 5e-4 on average of 20, 4.8 standard deviations of the logarithm


def test_layers_without_positions_stay_without(seed: int) -> None:
    smol = SmolLM3Config(**SIZES, num_key_value_heads=1, no_rope_layers=[1, 0], rope_parameters={**THETA})
    cohere = Cohere2Config(**SIZES, num_key_value_heads=1, rope_parameters={**THETA})
    for config in (smol, cohere):
        extend_positions(config, context_length=NEW, rope_type="linear")
        assert config.rope_parameters["factor"] == 4.0
        build(config, seed)(input_ids=torch.arange(20)[None])
    assert smol.no_rope_layers == [1, 0]


def test_phi3_counts_from_the_number_beside_its_parameters() -> None:
    config = Phi3Config(**SIZES, rope_parameters={**THETA})
    assert config.original_max_position_embeddings == 4096  # the class's default, not this model's
    extend_positions(config, context_length=NEW, rope_type="longrope", options=options_for("longrope"))
    assert config.original_max_position_embeddings == ORIGINAL
    assert type(config).from_dict(config.to_dict()).rope_parameters["original_max_position_embeddings"] == ORIGINAL


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_model_type_that_would_take_other_positions_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"phi3 cannot take rope.rope_type={kind}"):
        extend_positions(FAMILIES["phi3"][0](), context_length=NEW, rope_type=kind)


def test_positions_that_read_back_as_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FAMILIES["llama"][0]()
    other = FAMILIES["llama"][0]()
    monkeypatch.setattr(LlamaConfig, "from_dict", classmethod(lambda cls, values: other))
    with pytest.raises(ConfigError, match=r"llama cannot take rope\.rope_type=linear: its configuration would read"):
        extend_positions(config, context_length=NEW, rope_type="linear")


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(),
        BloomConfig(),
        MptConfig(),
        FalconConfig(alibi=True),
        GraniteMoeHybridConfig(position_embedding_type=None),
    ],
    ids=lambda config: config.model_type,
)
def test_models_without_rotary_positions_are_refused(config: PreTrainedConfig) -> None:
    with pytest.raises(ConfigError, match=f"{config.model_type} has no rotary positions"):
        rotary_parameters(config)


def test_models_with_rotary_positions_are_not() -> None:
    assert rotary_parameters(FalconConfig())["rope_theta"] == 10_000
    assert rotary_parameters(GraniteMoeHybridConfig(position_embedding_type="rope"))["rope_theta"] == 10_000


def test_a_configuration_that_does_not_say_how_far_it_reads() -> None:
    with pytest.raises(ConfigError, match="configuration of mamba has no max_position_embeddings"):
        readable_context(MambaConfig())


def test_a_larger_head_in_full_attention_counts() -> None:
    config = Gemma4TextConfig()
    present = config.rope_parameters["full_attention"]
    assert (config.to_dict()["head_dim"], present["rope_type"]) == (256, "proportional")
    before = dict(present)
    extend_positions(config, context_length=2 * config.max_position_embeddings, rope_type="theta")
    wanted = {**before, "rope_theta": pytest.approx(before["rope_theta"] * 2 ** (512 / 510), rel=1e-12)}
    assert config.rope_parameters["full_attention"] == wanted


def test_a_model_type_that_chokes_on_a_scaling_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"phimoe cannot take rope\.rope_type=yarn"):
        extend_positions(PhimoeConfig(), context_length=1_000_000, rope_type="yarn")


@pytest.mark.parametrize(
    ("family", "rope_type"), [("llama", "dynamic"), ("gemma3", "dynamic"), ("llama", "longrope"), ("phi3", "longrope")]
)
def test_scaling_by_the_length_is_left_out_of_a_copy(family: str, rope_type: str) -> None:
    config = FAMILIES[family][0]()
    plain = config.to_dict()["rope_parameters"]
    extend_positions(config, context_length=NEW, rope_type=rope_type, options=options_for(rope_type))
    scaled = config.to_dict()["rope_parameters"]
    assert without_dynamic_scaling(config).rope_parameters == plain
    assert config.rope_parameters == scaled != plain
    assert without_dynamic_scaling(GPT2Config()).to_dict() == GPT2Config().to_dict()


def test_positions_are_copied() -> None:
    config, parameters = FAMILIES["llama"][0](), {**THETA, "rope_type": "linear", "factor": 2.0}
    set_positions(config, rope_parameters=parameters, max_position_embeddings=128)
    config.rope_parameters["factor"] = 3.0
    assert parameters["factor"] == 2.0
    assert readable_context(config) == 128
    assert readable_context(GPT2Config()) == 1024
