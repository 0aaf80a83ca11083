"""Versions are known without an installed distribution of longlora."""

from importlib import metadata
from pathlib import Path

import pytest

import longlora
from longlora.support.machine import package_versions


def test_versions_are_those_of_the_installed_packages() -> None:
    assert package_versions("longlora", "torch") == {
        "longlora": longlora.__version__,
        "torch": metadata.version("torch"),
    }


def test_a_folder_on_the_path_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `importlib.metadata` knows no longlora, its version is known nevertheless."""

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert package_versions("longlora") == {"longlora": longlora.__version__}


def test_nothing_asks_for_the_distribution_of_longlora() -> None:
    sources = Path(longlora.__file__).parent.rglob("*.py")
    asking = [
        path.name
        for path in sources
        if "version('longlora')" in (text := path.read_text()) or 'version("longlora")' in text
    ]
    assert asking == []
