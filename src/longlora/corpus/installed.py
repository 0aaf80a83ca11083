"""The libraries of the extra `corpus`, which need not be there."""

from importlib.util import find_spec

from longlora.errors import ConfigError

_PACKAGES = ("pypdfium2", "bs4", "lxml", "datasketch")


def check_installed() -> None:
    """See that what reads documents is there.

    Raises:
        ConfigError: a library is missing.
    """
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"this needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'longlora[corpus]'"
        )
