"""Read recipes from YAML files and `key=value` overrides, and report each problem in a line with key and remedy."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from longlora.config.recipe import Recipe
from longlora.config.sections import UnusableValueError
from longlora.errors import ConfigError
from longlora.recipes import contained_recipe, find_recipe
from longlora.support.wording import short_repr, shortened

_LONGEST_PROBLEM = 600  # characters in the message about one problem
_MOST_PROBLEMS = 20
# Far above any recipe; parsing time is quadratic in the number of open brackets.
_MOST_CHARACTERS, _MOST_BRACKETS = 1_000_000, 1_000

# The names of these keys in other tools; used only for hints.
_OTHER_NAMES = {
    "model_name_or_path": "base_model model",
    "context_length": "sequence_len max_seq_length model_max_length max_length cutoff_len",
    "attention.pattern": "shift_attn s2_attention use_full_attn",
    "tuning": "low_rank_training",
    "lora.trainable": "trainable_params modules_to_save lora_modules_to_save additional_target",
    "lora.r": "lora_r lora_rank",
    "lora.lora_alpha": "lora_alpha",
    "lora.lora_dropout": "lora_dropout",
    "lora.target_modules": "lora_target lora_target_modules",
    "embedding_learning_rate": "embedding_lr loraplus_lr_embedding",
    "new_tokens": "tokens add_tokens resize_vocab",
    "data.source": "dataset data_path",
    "rope.rope_type": "rope_scaling",
    "rope.rope_theta": "rope_theta",
    "rope_type": "scaling_type",
    "factor": "scaling_factor",
    "dtype": "bf16 fp16",
    "quantization": "load_in_4bit quantization_bit",
    "optim": "optimizer",
    "gradient_checkpointing": "activation_checkpointing",
    "activation_offloading": "offload_activations",
    "chunked_loss": "use_liger_kernel",
    "per_device_train_batch_size": "micro_batch_size",
    "num_train_epochs": "num_epochs epochs",
    "data.validation_source": "val_dataset eval_dataset",
    "data.kind": "stage",
}


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Load a recipe from a file or by the name of a bundled one, and apply `key=value` overrides.

    An override has the form `attention.dense_finish=0.2`; values are YAML.

    Raises:
        ConfigError: the recipe does not exist or is not a YAML mapping; an unknown key, wrong type or impossible
            combination.
    """
    path = find_recipe(path)
    if path.is_dir():
        hint = contained_recipe(path)
        if not hint and (path / "config.json").is_file():
            hint = f"; this one is a model: `longlora init {path}` writes a recipe for it"
        raise ConfigError(
            f"{path} is a directory, but a recipe is a YAML file or one of the names that `longlora recipes` "
            f"lists{hint}"
        )
    values = read_yaml(path)
    apply_overrides(values, overrides)
    return parse_recipe(values, where=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that contains a mapping.

    Raises:
        ConfigError: it cannot be read, is not valid YAML, or contains something else.
    """
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must contain a mapping of keys to values, found {type(values).__name__}")
    return values


def _parse(text: str) -> Any:
    """Parse YAML and convert every error: constructors raise various ones, as for invalid dates or huge numbers."""
    if len(text) > _MOST_CHARACTERS or text.count("[") + text.count("{") > _MOST_BRACKETS:
        raise ConfigError(f"it has more than {_MOST_CHARACTERS:,} characters, or {_MOST_BRACKETS} brackets")
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ConfigError("it is nested too deeply") from error
    except Exception as error:
        raise ConfigError(shortened(" ".join(str(error).split()), limit=_LONGEST_PROBLEM)) from error


def parse_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """Validate a mapping and convert it to a recipe.

    Raises:
        ConfigError: unknown keys, wrong types or impossible combinations; the message lists every problem.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        problems = [f"  {shortened(_explain(problem), limit=_LONGEST_PROBLEM)}" for problem in found[:_MOST_PROBLEMS]]
        if len(found) > _MOST_PROBLEMS:
            problems.append(f"  and {len(found) - _MOST_PROBLEMS} more")
        raise ConfigError("\n".join([f"{where} cannot be used:", *problems])) from None


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> None:
    """Apply `section.key=value` overrides to a mapping of recipe keys, in place; values are YAML.

    `max_steps` and `num_train_epochs` replace one another, unless the value is null.

    Raises:
        ConfigError: as `parse_override`, or a section is a value.
    """
    parsed = list(map(parse_override, overrides))
    lengths = {"max_steps", "num_train_epochs"}
    if any(key in lengths and value is not None for key, value in parsed):
        for name in lengths:
            values.pop(name, None)
    for key, value in parsed:
        set_key(values, key, value)


def parse_override(override: str) -> tuple[str, Any]:
    """Return the key and the value of a `section.key=value` override.

    Raises:
        ConfigError: it has another form, or its value is not valid YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"an override must have the form key=value, found {short_repr(override)}")
    try:
        return key, _parse(text)
    except ConfigError as error:
        raise ConfigError(f"{short_repr(override)}: the value is not valid YAML") from error


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set `section.key` in a mapping of recipe keys.

    Raises:
        ConfigError: the section is a value.
    """
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{key}={short_repr(value)}: {section} is a value, not a section")
    values[name] = value


def dump_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML with every value explicit, which `load_recipe` reads back to the same recipe."""
    unused = {"max_steps"} if recipe.num_train_epochs is not None else None
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude=unused), sort_keys=False, allow_unicode=True)


def _explain(problem: Any) -> str:
    """Convert one of pydantic's error records to a line with key and remedy."""
    # pydantic includes the types that it tried among the keys.
    parts = [str(part) for part in problem["loc"]]
    location = [part for part in parts if part != "str" and not part.startswith(("tuple[", "function-"))]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        section: Any = Recipe
        for name in location[:-1]:
            section = section.model_fields[name].annotation
        known, wrong = list(section.model_fields), location[-1]
        meant = [ours for ours, theirs in _OTHER_NAMES.items() if wrong in theirs.split()]
        near = difflib.get_close_matches(wrong, known, n=1) or meant
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"{key!r} is required"
    if problem["type"] == "value_error":
        error = problem["ctx"]["error"]
        return f"{key}={short_repr(problem['input'])}: {error}" if isinstance(error, UnusableValueError) else str(error)
    return f"{key}={short_repr(problem['input'])}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
