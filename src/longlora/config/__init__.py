"""A recipe: one YAML file that says what a run does, checked before anything heavy is imported.

Keys carry the names of transformers and TRL where those have one. Every field has a sentence and a unit; an unknown key
is an error that names the nearest known one. `load_recipe` is the only way in, for files and for `key=value` overrides
alike.
"""

from longlora.config.recipe import Recipe
from longlora.config.sections import AttentionConfig, DataConfig, HardwareConfig, LoraConfig, RopeConfig
from longlora.config.yaml_files import apply_overrides, dump_recipe, load_recipe, parse_recipe, read_yaml, set_key

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
    "parse_recipe",
    "read_yaml",
    "set_key",
]
