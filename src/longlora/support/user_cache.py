"""The user's cache folder, and the error message if there is none."""

import os
from pathlib import Path

from longlora.errors import ConfigError


def user_cache(*, instead: str = "") -> Path:
    """Return longlora's folder in the user's cache, without creating it.

    Args:
        instead: another setting for the folder besides the environment, for the error message.

    Raises:
        ConfigError: XDG_CACHE_HOME is not set and there is no home folder, as in a container with `--user`.
    """
    if configured := os.environ.get("XDG_CACHE_HOME"):
        return Path(configured) / "longlora"
    try:
        return Path.home() / ".cache" / "longlora"
    except RuntimeError as error:
        remedies = " or ".join(filter(None, [instead, "the environment variable XDG_CACHE_HOME"]))
        raise ConfigError(
            f"there is no folder for a cache: HOME is not set, and there is no user with the id {os.getuid()}; "
            f"set {remedies} to a writable folder"
        ) from error
