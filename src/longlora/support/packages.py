"""Packages that only some uses need, and which version of a package is at work."""

import importlib.metadata
import importlib.util

from longlora import __version__
from longlora.errors import ConfigError


def require_package(package: str | None, *, wanted_by: str) -> None:
    """Make sure that an optional package is installed; None needs none.

    Raises:
        ConfigError: it is not.
    """
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(f"{wanted_by} needs {package}, which is not installed: pip install {package}")


def package_versions(*names: str) -> dict[str, str]:
    """Tell the versions of packages; longlora's own is known where it runs from a folder without being installed."""
    return {name: __version__ if name == "longlora" else importlib.metadata.version(name) for name in names}
