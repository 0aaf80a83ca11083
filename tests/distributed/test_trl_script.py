"""A script of TRL's under `accelerate launch` trains with S²-Attn where an engine lets it, and is refused where not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import REPOSITORY
from tests.distributed.conftest import TIMEOUT_SECONDS, environment

pytestmark = [pytest.mark.cpu, pytest.mark.slow]

SCRIPT = "tests/distributed/trl_script.py"
LAUNCH = ("-m", "accelerate.commands.launch", "--num_processes", "2", "--config_file")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    options = {"cwd": REPOSITORY, "env": environment(), "timeout": TIMEOUT_SECONDS}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, **options)


def test_deepspeed_trains_with_s2_on_two_processes(base_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed.runtime.sequence_parallel.ulysses_sp", reason="DeepSpeed is not installed")
    for way, launch in (("one", ()), ("sp", (*LAUNCH, "tests/distributed/deepspeed.yaml"))):
        done = run(*launch, SCRIPT, way, str(base_model), str(tmp_path / way))
        assert done.returncode == 0, done.stderr
    assert "sequence parallelism: S²-Attn cuts whole rows, 1/2 of the heads in each process" in done.stderr
    one, two = (json.loads((tmp_path / way).read_text()) for way in ("one", "sp"))
    assert len(one) == 4
    assert two == pytest.approx(one, abs=1e-5)


def test_a_ring_is_refused(base_model: Path, tmp_path: Path) -> None:
    done = run(*LAUNCH, "src/longlora/training/strategies/fsdp2.yaml", SCRIPT, "cp", str(base_model), str(tmp_path))
    assert done.returncode != 0
    assert "Context parallelism is supported only with SDPA attention, you are using s2." in done.stderr
