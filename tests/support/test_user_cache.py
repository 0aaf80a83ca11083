"""Where a user's cache lies, and what is said where there is none."""

import pwd
from pathlib import Path

import pytest

from longlora.errors import ConfigError
from longlora.serving.served_model import merged_adapter
from longlora.support.machine import user_cache


@pytest.fixture
def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `docker run --user 955`: a number that the list of users does not have, and no HOME."""

    def nobody(*which: object) -> None:
        raise KeyError(f"getpwuid(): uid not found: {which}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_cache() == tmp_path / "home" / ".cache" / "longlora"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert user_cache() == tmp_path / "cache" / "longlora"


@pytest.mark.usefixtures("without_home")
def test_without_a_home_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set data\.cache_dir or the environment variable XDG_CACHE_HOME to a"):
        user_cache(instead="data.cache_dir")
    with pytest.raises(ConfigError, match="set the environment variable XDG_CACHE_HOME to a writable"):
        user_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "longlora"


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "adapter").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be stored in .*; set the environment variable XDG_CACHE_HOME"):
        merged_adapter(tmp_path / "adapter")
