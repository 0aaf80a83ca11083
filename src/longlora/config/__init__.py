"""Recipes: one YAML file that configures a run, validated before anything heavy is imported.

Keys have the names of transformers and TRL where those exist. Every field has a description with its unit; an unknown
key is an error that suggests the nearest known one. `load_recipe` is the only entry point, for files and for
`key=value` overrides alike.
"""

from longlora.config.recipe import Recipe
from longlora.config.sections import AttentionConfig, DataConfig, HardwareConfig, LoraConfig, RopeConfig
from longlora.config.yaml_files import (
    apply_overrides,
    dump_recipe,
    load_recipe,
    parse_override,
    parse_recipe,
    read_yaml,
    set_key,
)

__all__ = [
    "AttentionConfig",
    "DataConfig",
    "HardwareConfig",
    "LoraConfig",
    "Recipe",
    "RopeConfig",
    "apply_overrides",
    "dump_recipe",
    "load_recipe",
    "parse_override",
    "parse_recipe",
    "read_yaml",
    "set_key",
]
