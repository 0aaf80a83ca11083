"""A recipe on the small random model that runs in a second or two."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longlora.config import Recipe, parse_recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def values(base_model: Path, text_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe's values: 64 -> 128 tokens, eight steps of two rows."""
    return {
        "model_name_or_path": str(base_model),
        "output_dir": str(tmp_path / "run"),
        "context_length": 128,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "gradient_accumulation_steps": 2,
        "save_steps": 3,
        "gradient_checkpointing": False,
        "data": {"source": str(text_folder), "cache_dir": str(tmp_path / "cache")},
    }


@pytest.fixture
def make_recipe(values: dict[str, Any]) -> MakeRecipe:
    """Build a recipe of those values with some changed."""

    def make(**changes: Any) -> Recipe:
        return parse_recipe({**values, **changes})

    return make
