"""The rule that makes a data set of Python's standard library."""

from pathlib import Path

import pytest

from longlora import tiny
from longlora.errors import CheckpointError, DataError
from longlora.tiny import stdlib


def test_splits_are_disjoint_and_stable() -> None:
    train, validation = (stdlib.standard_library_files(split) for split in ("train", "validation"))
    assert not set(train) & set(validation)
    assert train == sorted(train)
    names = {path.name for path in validation}
    assert {"doctest.py", "ipaddress.py"} <= names  # by checksum of the name: the same on every Python
    assert "json/decoder.py" in {"/".join(path.parts[-2:]) for path in train}


def test_only_the_library_s_own_code() -> None:
    files = stdlib.standard_library_files("train") + stdlib.standard_library_files("validation")
    folders = {part for path in files for part in path.parts}
    assert not folders & {"site-packages", "idlelib", "encodings", "__pycache__"}
    assert {path.suffix for path in files} == {".py"}


def test_a_package_without_its_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tiny, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(CheckpointError, match="create it with `make base-model`"):
        tiny.tiny_model_directory()


def test_a_python_without_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stdlib.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match="installed without them"):
        stdlib.standard_library_files("train")
