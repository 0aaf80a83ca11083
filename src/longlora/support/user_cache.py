"""Where a user's cache lies: the one place that looks for it, and that says what to do where there is none."""

import os
from pathlib import Path

from longlora.errors import ConfigError


def user_cache(*, instead: str = "") -> Path:
    """Folder of longlora in the user's cache; not made yet.

    Args:
        instead: what else names a folder, besides the environment; told where there is none.

    Raises:
        ConfigError: the user has no home folder, as a container's with `--user` may not, and XDG_CACHE_HOME is not set.
    """
    if configured := os.environ.get("XDG_CACHE_HOME"):
        return Path(configured) / "longlora"
    try:
        return Path.home() / ".cache" / "longlora"
    except RuntimeError as error:
        remedies = " or ".join(filter(None, [instead, "the environment variable XDG_CACHE_HOME"]))
        raise ConfigError(
            "there is no folder for a cache: HOME is not set, and the system knows no user of number "
            f"{os.getuid()}; set {remedies} to a writable folder"
        ) from error
