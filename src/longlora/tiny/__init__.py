"""The tiny base model that ships with the package, and the data it comes from."""

from pathlib import Path

from longlora.errors import CheckpointError

TINY_MODEL = "tiny"
"""The name in recipes and commands for the model that ships with the package."""


def tiny_model_directory() -> Path:
    """Return the directory of the tiny model's weights and tokenizer.

    Raises:
        CheckpointError: the package was installed without them.
    """
    directory = Path(__file__).parent / "model"
    if not (directory / "model.safetensors").exists():
        raise CheckpointError(f"the tiny model is missing from {directory}; create it with `make base-model`")
    return directory
