"""Optional packages, and the versions of installed ones."""

import importlib.metadata
import importlib.util

from longlora import __version__
from longlora.errors import ConfigError


def require_package(package: str | None, *, wanted_by: str) -> None:
    """Check that an optional package is installed; None requires nothing.

    Raises:
        ConfigError: it is not installed.
    """
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(f"{wanted_by} needs {package}, which is not installed: pip install {package}")


def package_versions(*names: str) -> dict[str, str]:
    """Return the versions of packages; that of longlora is known even if it is not installed."""
    return {name: __version__ if name == "longlora" else importlib.metadata.version(name) for name in names}
