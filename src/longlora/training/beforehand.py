"""What is wrong with a run and can be seen at once, before torch is loaded."""

from pathlib import Path

from longlora.checkpoint import model_source
from longlora.config import Recipe
from longlora.errors import ConfigError
from longlora.files import locate


def check_beforehand(recipe: Recipe) -> None:
    """Look at the places that a recipe names: the output directory, the model, the data.

    Raises:
        ConfigError: the output directory cannot be used.
        CheckpointError: there is no model where the recipe says.
        DataError: there are no texts where it says.
    """
    check_output(recipe)
    model_source(recipe.model_name_or_path)
    data = recipe.data
    for source in (data.source, data.validation_source):
        for name in [source] if isinstance(source, str) else source or ():
            locate(name)


def result_directory(recipe: Recipe) -> Path:
    """Name the directory of what a run trains: the adapter, or the model."""
    return Path(recipe.output_dir).expanduser() / ("model" if recipe.tuning == "full" else "adapter")


def check_output(recipe: Recipe) -> None:
    """Make sure that a run may begin, or go on, in its output directory.

    Raises:
        ConfigError: it holds a finished run or something else.
    """
    result = result_directory(recipe)
    root = result.parent
    if result.exists():
        raise ConfigError(f"{root} holds a finished run; choose another output_dir, or delete it to train again")
    is_run = (root / "recipe.yaml").exists()
    if not is_run and root.exists() and (not root.is_dir() or _holds_something(root)):
        raise ConfigError(f"output_dir={recipe.output_dir} exists and is not a run of longlora; choose another")


def _holds_something(root: Path) -> bool:
    return any(path.name not in ("checkpoints", "lock") for path in root.iterdir())
