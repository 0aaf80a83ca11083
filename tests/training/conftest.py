"""A recipe on the small random model that runs in a second or two."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from longlora.config import Recipe, parse_recipe

MakeRecipe = Callable[..., Recipe]
STORY = "the sea was calm and a ship lay still upon it. "


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw curves small and without a layout: nobody looks at those of a test, and a hundred runs draw some."""
    save = Figure.savefig

    def quickly(figure: Figure, file: Path, **options: Any) -> None:
        figure.set_layout_engine("none")
        save(figure, file, **{**options, "dpi": 20})

    monkeypatch.setattr(Figure, "savefig", quickly)


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
        "dtype": "float32",  # numbers are compared, and on a GPU "auto" is bfloat16
        "data": {"source": str(text_folder), "cache_dir": str(tmp_path / "cache")},
    }


@pytest.fixture
def make_recipe(values: dict[str, Any]) -> MakeRecipe:
    """Build a recipe of those values with some changed."""

    def make(**changes: Any) -> Recipe:
        return parse_recipe({**values, **changes})

    return make


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """Eighteen questions of one or two lines about a short story, with answers of a few words."""
    answers = ["calm", "still", "a ship", "the sea", "lay upon it", "was calm"]
    rows = [{"instruction": f"{STORY}\nWhat {a[0]}?", "output": a} for a in answers * 3]
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def make_sft(make_recipe: MakeRecipe, conversations: Path, tmp_path: Path) -> MakeRecipe:
    """Build a recipe that fine-tunes on them, and measures and samples on the same."""

    def make(data: dict[str, Any] | None = None, **changes: Any) -> Recipe:
        values = {
            "kind": "sft",
            "source": str(conversations),
            "validation_source": str(conversations),
            "max_validation_rows": 4,
            "cache_dir": str(tmp_path / "cache"),
            **(data or {}),
        }
        return make_recipe(**{"data": values, "eval_steps": 4, "num_sampled_answers": 2, **changes})

    return make
