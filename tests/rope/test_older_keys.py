"""What readers before transformers 5 take from a configuration is what transformers 5 takes from it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.test_positions import FAMILIES, LONG, NEW, ORIGINAL, SHORT, SIZES, THETA, build, options_for
from tests.rope import formulas
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Olmo3Config

import longlora.models.older_keys
from longlora.errors import ConfigError
from longlora.models.older_keys import write_older_keys
from longlora.models.positions import extend_positions
from longlora.rope.other_readers import older_keys

CASES = [
    *(("llama", kind) for kind in ("linear", "theta", "dynamic", "yarn", "llama3", "longrope")),
    *(("gpt_neox", kind) for kind in ("linear", "theta", "yarn", "llama3")),
    *(("gemma3", kind) for kind in ("linear", "theta", "llama3")),
    *(("phi3", kind) for kind in ("theta", "longrope")),
]


def read_as_v4_does(config: dict[str, Any], length: int) -> formulas.Rope:
    """Frequencies by the keys of transformers 4.57: θ and rotated part at the top, the scaling in `rope_scaling`."""
    theta = config.get("rotary_emb_base", config.get("rope_theta", 10_000.0))
    rotated = config.get("rotary_pct", config.get("partial_rotary_factor", 1.0))
    d = int((config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]) * rotated)
    scaling = config.get("rope_scaling")
    context = config["max_position_embeddings"]
    if scaling is None:
        return formulas.plain(theta, d), 1.0
    assert scaling.get("rope_type", scaling["type"]) == scaling["type"]
    if config["model_type"] == "phi3":  # its configuration refused anything else
        assert set(scaling) == {"type", "short_factor", "long_factor"}
    match scaling["type"]:
        case "linear":
            return formulas.linear(theta, d, original=1, new=scaling["factor"])
        case "dynamic":
            return formulas.dynamic(theta, d, original=context, new=scaling["factor"] * context, length=length)
        case "yarn":
            original = scaling["original_max_position_embeddings"]
            return formulas.yarn(theta, d, original=original, new=context, fast=scaling["beta_fast"])
        case "llama3":
            original, low, high = (
                scaling[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
            )
            return formulas.llama3(theta, d, original=original, new=scaling["factor"] * original, low=low, high=high)
    original = config["original_max_position_embeddings"]  # at the top
    factors = {"short": scaling["short_factor"], "long": scaling["long_factor"]}
    return formulas.longrope(theta, d, original=original, new=context, length=length, **factors)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_both_spellings_say_the_same(
    family: str, kind: str, seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, _, prefix = FAMILIES[family]
    config = make()
    extend_positions(config, context_length=NEW, rope_type=kind, options=options_for(kind))
    model = build(config, seed)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values |= older_keys(config.rope_parameters, model_type=config.model_type)
    path.write_text(json.dumps(values))

    tokens = torch.randint(40, (1, NEW), generator=torch.Generator().manual_seed(seed))
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # to caplog
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    if (family, kind) != ("phi3", "longrope"):
        assert [record.getMessage() for record in caplog.records] == []
    with torch.no_grad():
        torch.testing.assert_close(reloaded(input_ids=tokens).logits, model(input_ids=tokens).logits)

    frequencies, _ = read_as_v4_does(values, length=NEW)
    inv_freq = getattr(reloaded.base_model.rotary_emb, f"{prefix}inv_freq")
    torch.testing.assert_close(inv_freq, torch.tensor(frequencies), rtol=1e-5, atol=0)
    if family == "gemma3":
        assert values["rope_local_base_freq"] == 300.0
    reread = AutoConfig.from_pretrained(tmp_path).rope_parameters
    ignored = ("type", "factor") if (family, kind) == ("phi3", "longrope") else ("type",)
    for parameters in (reread, reread.get("full_attention", {})):
        for name in ignored:
            parameters.pop(name, None)
    expected = {name: value for name, value in config.rope_parameters.items() if name not in ignored}
    assert reread == expected


def test_a_warning_would_be_noticed(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    LlamaConfig(**SIZES, rope_parameters={**THETA, "colour": 1})
    assert "Unrecognized keys in `rope_parameters`" in caplog.text


def test_a_reader_of_old_keys_misses_positions_without_them() -> None:
    config = FAMILIES["llama"][0]()
    extend_positions(config, context_length=NEW, rope_type="linear")
    assert read_as_v4_does(config.to_dict(), length=NEW)[0] != formulas.linear(5000.0, 32, original=64, new=256)[0]


def test_olmo3_scales_full_attention_and_shares_theta() -> None:
    config = Olmo3Config(
        **SIZES,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"full_attention": {**THETA}, "sliding_attention": {**THETA}},
    )
    extend_positions(config, context_length=NEW, rope_type="yarn")
    keys = older_keys(config.rope_parameters, model_type="olmo3")
    assert (keys["rope_theta"], keys["rope_scaling"]["type"]) == (5000.0, "yarn")
    read = Olmo3Config.from_dict({**config.to_dict(), **keys}).rope_parameters
    read["full_attention"].pop("type")
    assert read == config.rope_parameters


@pytest.mark.parametrize(
    ("parameters", "model_type", "expected"),
    [
        (
            {**THETA, "rope_type": "proportional"},
            "gemma4_text",
            "does not support positions of rope_type 'proportional'",
        ),
        (
            {**THETA, "rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "attention_factor": 1.1}
            | {"original_max_position_embeddings": ORIGINAL},
            "phi3",
            "does not accept an attention_factor",
        ),
        ({"full_attention": THETA, "sliding_attention": {**THETA, "rope_theta": 1.0}}, "olmo3", "no keys for these"),
        ({"full_attention": THETA, "sliding_attention": THETA}, "modernbert-decoder", "no keys for these"),
    ],
)
def test_positions_without_older_keys(parameters: dict[str, Any], model_type: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        older_keys(parameters, model_type=model_type)


def test_a_model_of_its_own_code_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    values = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}, "rope_parameters": {**THETA}}
    path.write_text(json.dumps(values))
    write_older_keys(tmp_path, required=True)
    assert json.loads(path.read_text()) == values


def test_keys_that_a_model_type_refuses_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = LlamaConfig(**SIZES, rope_parameters={**THETA, "rope_type": "linear", "factor": 2.0})
    config.save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_text()
    monkeypatch.setattr(longlora.models.older_keys, "older_keys", lambda *_, **__: {"hidden_size": "none"})
    write_older_keys(tmp_path)
    assert (tmp_path / "config.json").read_text() == before
    assert "transformers 4 would misread" in caplog.text
