"""Writes docs/models.md out of what the probe and LoRA+ find: `make models-page`."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from tests.families.families import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from longlora.errors import ConfigError
from longlora.models.grouping import USE_FULL_ATTENTION
from longlora.models.lora import attention_linear_names, embedding_and_norm_names
from longlora.models.probe import S2Layers, check_s2_reaches

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

# What their default configurations leave open.
COMPLETIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 1408},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "mistral": {"sliding_window": None},
    "nemotron": {"num_key_value_heads": 8},
    "seed_oss": {"attention_dropout": 0.0},
}

HEAD = """\
# Models

<!-- Written by `make models-page`; the tests compare it with what the code does. -->

This page lists which transformers architectures train with S²-Attn, and what LoRA+ trains in them.
`check_s2_reaches(config)` answers the same question for one configuration; `longlora train` checks it before it loads
any weights, and stops if the answer is no. [In your own script](scripts.md), `set_group_size` and the first training
step check it. No model is ever silently trained with full attention instead. The models published by the paper's
authors, with a command that imports each of them, are in [released.md](released.md).

- **S² layers** train with S²-Attn and evaluate with ordinary attention. **Windowed** layers have their own sliding
  window or chunks and keep them, also in training.
- **Softcap** (Gemma 2) and **sinks** (gpt-oss) are applied in training, by kernels that support them
  (`longlora.attention.backends`). transformers' "sdpa" supports neither; such models evaluate with "eager" attention,
  whose memory grows with the square of the length, unless you load them with another.
- Models that read **images** (Qwen2-VL and others) train their text in groups: load them with
  `attn_implementation={"text_config": "s2"}`, so that the image encoder keeps its own attention.
- **Falcon** and **GPT-J** look up "s2" in their own tables, so transformers raises `KeyError: 's2'` while it builds the
  model, before any of our code runs; `check_s2_reaches` explains this.
- Layers of **linear attention** (Qwen3-Next, Mamba hybrids) are not affected: they carry a state over the whole row,
  also from one packed document to the next.
"""

FAMILIES_HEAD = """
## Families

Each of these is tested with a tiny random model for: groups in training (by the calls, and by which inputs affect which
outputs), ordinary attention in evaluation, generation with a cache, packed and padded batches, gradients in everything
that LoRA+ trains, and a merged model equal to its adapter (`tests/families`).

| model type | S² layers | windowed | softcap, sinks | LoRA on | fully trained |
|---|---|---|---|---|---|
"""

OTHERS_HEAD = """
## Everything else

The other architectures for causal language models in transformers {version} that have rotary positions, asked with
their default configuration (where that is incomplete, with more: {completed}). They are not tested individually. Models
without rotary positions (GPT-2, OPT, BLOOM, MPT …) cannot be extended by rescaling them, and are not listed.

| model type | S² layers | windowed | softcap, sinks; or why not |
|---|---|---|---|
"""


def families_table() -> str:
    """List the tested families, with what their tiny models have."""
    rows = []
    for family in FAMILIES:
        layers = check_s2_reaches(family.config())
        model = AutoModelForCausalLM.from_config(family.config())
        lora, whole = (
            ", ".join(f"`{name}`" for name in names(model))
            for names in (attention_linear_names, embedding_and_norm_names)
        )
        total = family.config().num_hidden_layers
        rows.append(
            f"| {family.model_type} | {len(layers.grouped)} of {total} | {len(layers.windowed)} of {total} "
            f"| {_extras(layers)} | {lora} | {whole} |"
        )
    return "\n".join(rows) + "\n"


def _extras(layers: S2Layers) -> str:
    return ", ".join(["softcap"] * layers.softcapped + ["sinks"] * layers.with_sinks)


def others_table() -> str:
    """Ask every other architecture with rotary positions; minutes of work."""
    return "\n".join(f"| {name} | {_answer(config)} |" for name, config in sorted(_others())) + "\n"


def _others() -> Iterator[tuple[str, PreTrainedConfig]]:
    tested = {family.model_type for family in FAMILIES}
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if name in tested:
            continue
        try:
            config = AutoConfig.for_model(name, **COMPLETIONS.get(name, {}))
            text_config = config.get_text_config()
        except Exception:  # no default configuration
            continue
        if getattr(text_config, "rope_parameters", None):
            yield name, config


def _answer(config: PreTrainedConfig) -> str:
    try:
        layers = check_s2_reaches(config)
    except ConfigError as error:
        reason = (
            str(error)
            .splitlines()[0]
            .removesuffix(f"; {USE_FULL_ATTENTION}")
            .removesuffix(f", or {USE_FULL_ATTENTION}")
            .replace("|", "\\|")
        )
        return f"| | {reason}"
    total = config.get_text_config().num_hidden_layers
    return f"{len(layers.grouped)} of {total} | {len(layers.windowed)} of {total} | {_extras(layers)}"


def page(others: str) -> str:
    """Put the page together around the table of the others."""
    head = OTHERS_HEAD.format(version=transformers.__version__, completed=", ".join(sorted(COMPLETIONS)))
    return HEAD + FAMILIES_HEAD + families_table() + head + others


def written_others() -> str:
    """Return the table of the others as the page has it."""
    return PAGE.read_text(encoding="utf-8").rpartition("|---|---|---|---|\n")[2]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    PAGE.write_text(page(others_table()), encoding="utf-8")
