"""Versions of packages, the folder of a user's cache, threads and signals, and what is said where they are missing."""

import os
import pwd
import resource
import signal
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

import pytest

import longlora
from longlora.errors import ConfigError
from longlora.serving.served_model import merged_adapter
from longlora.support.machine import handling, package_versions, thread_pool, user_cache


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


def _under_a_limit(more_bytes: int, num_threads: int) -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + more_bytes, resource.RLIM_INFINITY))
    try:
        with thread_pool(num_threads) as pool:
            assert sum(pool.map(abs, range(100))) == 4950
    except MemoryError as error:
        raise SystemExit(3) from error


@pytest.mark.parametrize(("mebibytes", "status"), [(60, 3), (600, 0)])
def test_no_thread_starts_without_memory(mebibytes: int, status: int) -> None:
    process = get_context("spawn").Process(target=_under_a_limit, args=(mebibytes << 20, 8))
    process.start()
    process.join(60)
    assert process.exitcode == status


def test_a_signal_is_handled_within_the_block_only() -> None:
    before, heard = signal.getsignal(signal.SIGUSR1), list[int]()
    with pytest.raises(KeyError), handling(signal.SIGUSR1, lambda number, frame: heard.append(number)):
        os.kill(os.getpid(), signal.SIGUSR1)
        raise KeyError
    assert heard == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) == before
