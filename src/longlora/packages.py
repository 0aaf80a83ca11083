"""Packages that only some uses need."""

import importlib.util

from longlora.errors import ConfigError


def require_package(package: str | None, *, wanted_by: str) -> None:
    """Make sure that an optional package is installed; None needs none.

    Raises:
        ConfigError: it is not.
    """
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(f"{wanted_by} needs {package}, which is not installed: pip install {package}")
