"""Draft a recipe for a model on given GPUs: the paper's settings, plus the memory optimizations that make it fit."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from longlora.config import Recipe, apply_overrides, parse_override, parse_recipe, set_key
from longlora.errors import ConfigError
from longlora.planner.architecture import Architecture, find_architecture
from longlora.planner.compute import GIB, Gpu
from longlora.planner.known_models import find_known_model
from longlora.planner.plan import Plan, make_plan
from longlora.planner.savings import RunChange, needed_changes
from longlora.rope.extend import extended_parameters, present_context
from longlora.support.choices import Strategy
from longlora.training.preflight import planned_run

TOKENS_PER_STEP = 2**19  # the paper's 64 rows of 8,192
MOST_ROWS = 64  # per step
NUM_STEPS = 250  # of 2^19 tokens: a quarter of the paper's run at 8k
NUM_EPOCHS = 3  # over conversations
FULL_ATTENTION_INTERVAL = 6  # layers; docs/results.md
LARGE_MODEL = 40e9  # parameters; above this the paper halves the learning rate
CARDS = ("rtx-4090", "l40s", "h100-80gb", "h200")  # with 24, 48, 80 and 141 GB
_COMMENT_COLUMN = 42


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The machine that a recipe is drafted for."""

    gpus: int
    memory_gib: float  # per GPU
    gpu: Gpu | None = None  # None: no time estimate
    host_memory_gib: float | None = None  # None: not checked
    strategy: Strategy | None = None  # None: the plan chooses


@dataclass(frozen=True, kw_only=True)
class RecipeDraft:
    """A recipe found for a model, and its plan."""

    values: Mapping[str, Any]  # the recipe keys that were decided
    why: Mapping[str, str]  # a phrase explaining some of them, by `section.key`
    changes: tuple[RunChange, ...]  # memory optimizations switched on to fit, cheapest first
    recipe: Recipe
    plan: Plan


def draft_recipe(
    model: str,
    context_length: int,
    hardware: Hardware,
    *,
    data: Sequence[str] = ("data/long-texts/",),
    overrides: Sequence[str] = (),
) -> RecipeDraft:
    """Find a recipe that extends `model` to `context_length` tokens; `overrides` are fixed before the search.

    If the model already reads that many tokens, the recipe is for conversations (`data.kind: sft`). If nothing makes it
    fit, the draft has every memory optimization that helps.

    Raises:
        CheckpointError: the model's configuration cannot be loaded.
        ConfigError: its architecture is unknown, its positions cannot be extended, or an override is invalid.
    """
    chosen = dict(map(parse_override, overrides))
    for key in chosen:
        if key in ("model_name_or_path", "context_length") or key.startswith("hardware."):
            raise ConfigError(f"{key} cannot be overridden here; use MODEL, --context, --gpus, --memory or --strategy")
    architecture = find_architecture(model)
    values, why = _first_values(architecture, context_length, hardware, data, chosen)
    apply_overrides(values, overrides)
    settled = chosen.keys() | ({"hardware.strategy"} if hardware.strategy else set())
    first, memory_bytes = plan_recipe(parse_recipe(values), hardware), int(hardware.memory_gib * GIB)
    for with_margin in (True, False):  # if nothing keeps the margin, a tight fit beats giving up more
        changes = needed_changes(first.run, memory_bytes, with_margin=with_margin, settled=settled)
        found = copy.deepcopy(values)
        for key, value in (setting for change in changes for setting in change.recipe.items()):
            set_key(found, key, value)
        plan = plan_recipe(recipe := parse_recipe(found), hardware)
        if plan.keeps_margin:
            break
    why = {key: reason for key, reason in why.items() if key not in chosen}
    why |= {key: change.what for change in changes for key in change.recipe}
    return RecipeDraft(values=found, why=why, changes=tuple(changes), recipe=recipe, plan=plan)


def plan_recipe(recipe: Recipe, hardware: Hardware) -> Plan:
    """Plan a recipe on the given GPUs, which may differ from those that it names."""
    host = hardware.host_memory_gib
    return make_plan(
        planned_run(
            recipe, num_gpus=hardware.gpus, strategy=hardware.strategy or recipe.hardware.strategy_on(hardware.gpus)
        ),
        memory_bytes=int(hardware.memory_gib * GIB),
        host_memory_bytes=int(host * GIB) if host else None,
        gpu=hardware.gpu,
    )


def _first_values(
    architecture: Architecture,
    context_length: int,
    hardware: Hardware,
    data: Sequence[str],
    chosen: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the recipe before any memory optimization, and the reasons for its values.

    Nothing in it contradicts the overrides in `chosen`, which are applied to it.
    """
    gpus, model = hardware.gpus, architecture.name
    accumulation = max(1, round(min(MOST_ROWS, TOKENS_PER_STEP / context_length) / gpus))
    tokens = NUM_STEPS * accumulation * gpus * context_length
    large = architecture.num_parameters > LARGE_MODEL
    positions, why = _positions(architecture, context_length)
    is_sft = chosen.get("data.kind", "text" if positions else "sft") == "sft"
    attention = _attention(architecture, chosen)
    duration = {"num_train_epochs": NUM_EPOCHS} if is_sft else {"max_steps": NUM_STEPS}
    values: dict[str, Any] = {
        "model_name_or_path": model,
        "output_dir": f"runs/{model.rstrip('/').rpartition('/')[2].lower()}-{_in_thousands(context_length)}",
        "context_length": context_length,
        "data": {"kind": "sft"} if is_sft else {},
        "attention": attention,
        "rope": positions,
        **duration,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-5 if large else 2e-5,
        "hardware": {"gpus": gpus, "memory_gib": hardware.memory_gib},
    }
    values["data"]["source"] = data[0] if len(data) == 1 else list(data)
    if gpus > 1:
        values["hardware"]["strategy"] = hardware.strategy or "ddp"
    why |= {
        "data.source": "conversations (docs/finetuning.md)" + "; the model already has this context" * (not positions)
        if is_sft
        else "documents longer than the old context: books, papers, code",
        "attention.shift": "all heads have the same groups (docs/sink.md); the paper shifts half of them",
        "attention.sink_tokens": "every group sees its document's first token (docs/sink.md); the paper has 0",
        "attention.full_attention_interval": f"one layer in {attention.get('full_attention_interval')}"
        + " without a window" * bool(architecture.num_sliding_layers)
        + " has full attention (docs/how-it-works.md); the paper has none",
        "num_train_epochs": "passes over the conversations; the paper has 5",
        "max_steps": f"× {accumulation * gpus} rows: {tokens / 1e6:.0f} million tokens; the paper's run at 8k has 524",
        "learning_rate": f"the paper's, for {'70B' if large else '7B and 13B'}",
        "hardware.gpus": "the hardware that `longlora plan` plans for",
    }
    return {key: value for key, value in values.items() if value != {}}, why


def _attention(architecture: Architecture, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `attention` section: unshifted groups beside dense layers, else shifted ones with a sink token."""
    if chosen.get("attention.pattern") == "full":
        return {}
    most = min(FULL_ATTENTION_INTERVAL, architecture.num_layers - architecture.num_sliding_layers)
    interval = chosen.get("attention.full_attention_interval", most if most > 1 else None)
    groups = {"sink_tokens": 1} if chosen.get("attention.shift", interval is None) else {"shift": False}
    return groups | ({"full_attention_interval": interval} if interval else {})


def _positions(architecture: Architecture, context_length: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the `rope` section, empty if the model already reads that far; docs/positions.md explains the choice."""
    known = find_known_model(architecture.name)
    present, reach = architecture.rope_parameters, architecture.max_position_embeddings
    base_context = known.base_context if known else None
    if context_length <= (base_context or present_context(present, reach)):
        return {}, {}
    parameters = extended_parameters(present)
    rope_type = parameters.get("rope_type", "default")
    if rope_type == "default":
        # For models of type phi3, transformers supports no other method.
        rope_type, reason = ("theta", "a larger base") if architecture.model_type == "phi3" else ("yarn", "")
    else:
        reason = "the model's own, continued"
    values: dict[str, Any] = {"rope_type": rope_type}
    why = {"rope.rope_type": reason or "keeps the fast frequencies; the paper has `linear` (docs/positions.md)"}
    if base_context:
        values["base_context"] = base_context
        why["rope.base_context"] = f"context in pretraining; its configuration says {reach:,}"
    if rope_type == "yarn" and "attention_factor" in parameters:
        factor = context_length / parameters["original_max_position_embeddings"]
        values["attention_factor"] = round(0.1 * math.log(factor) + 1, 6)
        why["rope.attention_factor"] = f"YaRN's, for factor {factor:g}"
    return values, why


def _in_thousands(tokens: int) -> str:
    thousand = next((thousand for thousand in (1024, 1000) if tokens % thousand == 0), None)
    return f"{tokens // thousand}k" if thousand else str(tokens)


def draft_to_yaml(draft: RecipeDraft, path: str) -> str:
    """Return a draft as YAML, with a comment after each value that needs one; `path` is the file it is meant for."""
    plan, recipe = draft.plan, draft.recipe
    hardware = recipe.hardware
    gpus = f"{hardware.gpus} GPU{'s' * (hardware.gpus > 1)} of {hardware.memory_gib:g} GiB"
    several = f" --strategy {hardware.strategy} --processes {hardware.gpus}" if hardware.gpus > 1 else ""
    tuning = {"lora": "LoRA", "lora+": "LoRA+", "full": "full fine-tuning"}[recipe.tuning]
    in_groups = "S²-Attn" if recipe.attention.shift else "unshifted groups"
    attention = in_groups if recipe.attention.pattern == "s2" else "full attention"
    lines = [
        f"# {recipe.model_name_or_path} at {recipe.context_length:,} tokens: {tuning} with {attention} on {gpus}.",
        "#",
        f"# Launch  longlora train {path}{several}",
        f"# Try     longlora train {path} --miniature   (a minute, with a small random model)",
        f"# Plan    longlora plan {path} [KEY=VALUE …]   ({plan.memory.total / GIB:.1f} GiB on each GPU, "
        f"{plan.memory.host_total / GIB:.0f} GiB on the host)",
        *_values({key: draft.values[key] for key in Recipe.model_fields if key in draft.values}, draft.why),
    ]
    return "\n".join(lines) + "\n"


def _values(values: Mapping[str, Any], why: Mapping[str, str], section: str = "") -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *_values(value, why, f"{key}.")]
            continue
        dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).removesuffix("...\n")
        line = f"{'  ' * bool(section)}{key}: {dumped.strip()}"
        comment = why.get(section + key)
        lines.append(f"{line:{_COMMENT_COLUMN - 2}}  # {comment}" if comment else line)
    return lines
