"""What `longlora doctor` finds, and what it advises."""

import ast
import importlib.metadata
import re
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from longlora.cli import doctor
from longlora.cli.main import app
from longlora.errors import ConfigError

SOURCE = Path(doctor.__file__).parents[1]
INTERNAL = {"LONGLORA_LAUNCHER"}  # set by longlora for the processes that it starts


def report(*arguments: str) -> tuple[int, str]:
    """Run the command wide enough that no line is broken; give its status and what it printed."""
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["doctor", *arguments])
    return result.exit_code, result.output


def test_it_says_what_is_here(tmp_path: Path) -> None:
    status, printed = report("--folder", str(tmp_path))
    assert status == 0
    assert f"torch         {torch.__version__}" in printed
    assert f"{torch.get_num_threads()} threads" in printed
    assert f"{tmp_path}, " in printed and "MB/s" in printed
    assert not any(tmp_path.iterdir())
    for extra in doctor.EXTRAS:
        assert f"\n  {extra} " in printed


def test_it_knows_every_extra() -> None:
    assert {*doctor.EXTRAS, "dev"} == set(importlib.metadata.metadata("longlora").get_all("Provides-Extra") or ())


def test_it_knows_every_variable() -> None:
    constants = {
        node.value
        for path in SOURCE.rglob("*.py")
        if path != Path(doctor.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    used = {value for value in constants if re.fullmatch("LONGLORA_[A-Z_]+", value)}
    listed = {name for name in (*doctor.VARIABLES, *doctor.SECRETS) if name.startswith("LONGLORA_")}
    assert listed == used - INTERNAL
    assert used >= INTERNAL


def test_it_tells_variables_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGLORA_VERIFY", "1")
    monkeypatch.setenv("LONGLORA_API_KEY", "hunter2")
    _, printed = report()
    assert "LONGLORA_VERIFY   1 " in printed and "LONGLORA_API_KEY  set\n" in printed
    assert "LONGLORA_GROUP_SIZE" not in printed and "hunter2" not in printed


def test_a_package_that_is_too_old_or_missing_ends_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "trl":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.5" if name == "peft" else installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    status, printed = report()
    assert status == 1
    assert "0.5, needs >=" in printed and "pip install 'peft>=" in printed
    assert "not installed, needs >=" in printed and "pip install 'trl>=" in printed
    assert "2 to fix" in printed


def test_an_extra_that_is_incomplete_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name == "lm-eval":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    status, printed = report()
    assert status == 0
    assert "missing (lm-eval): LongBench and RULER" in printed and "pip install 'longlora[eval]'" in printed


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, printed = report("--folder", str(tmp_path / "file"))
    assert status == 1
    assert f"{tmp_path / 'file'} cannot be written" in printed and "choose another with --folder" in printed


def test_a_driver_without_a_torch_that_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert any("install a CUDA build of torch" in finding.remedy for finding in doctor.devices())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not any(finding.remedy for finding in doctor.devices())


@pytest.mark.parametrize(("capability", "kernel"), [((9, 0), "by_length"), ((8, 6), "varlen")])
def test_the_kernel_of_a_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], kernel: str) -> None:
    card = {
        "device_count": lambda: 1,
        "is_available": lambda: True,
        "mem_get_info": lambda index: (70 * 2**30, 80 * 2**30),
        "get_device_capability": lambda index: capability,
        "get_device_name": lambda index: "NVIDIA H100",
        "is_bf16_supported": lambda including_emulation: True,
    }
    for name, function in card.items():
        monkeypatch.setattr(torch.cuda, name, function)
    first = next(doctor.devices())
    assert first == doctor.DoctorLine("cuda:0", f"NVIDIA H100, 70.0 of 80.0 GiB free; S²-Attn by {kernel}")


def test_from_a_folder_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert any("not checked" in finding.state for finding in doctor.versions())


def test_no_cache_and_a_disk_that_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_cache() -> Path:
        raise ConfigError("there is no folder for a cache")

    def full(folder: Path) -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("longlora.support.machine.user_cache", no_cache)
    monkeypatch.setattr(doctor, "_write_speed", full)
    status, printed = report("--folder", str(tmp_path))
    assert status == 1
    assert "there is no folder for a cache" in printed and "No space left on device" in printed


def test_a_card_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    card = {
        "device_count": lambda: 1,
        "is_available": lambda: True,
        "mem_get_info": lambda index: (15 * 2**30, 16 * 2**30),
        "get_device_capability": lambda index: (7, 5),
        "get_device_name": lambda index: "Tesla T4",
        "is_bf16_supported": lambda including_emulation: False,
    }
    for name, function in card.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert "set dtype: float16 or float32" in next(doctor.devices()).remedy
