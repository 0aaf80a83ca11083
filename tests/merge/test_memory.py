"""Merging takes the memory of a few files of the base, not of the model: measured, in a process of its own."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.merge.adapters import peft_adapter, save_base

from longlora.errors import CheckpointError
from longlora.merge import merge_adapter, streaming

WIDE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 20, "num_attention_heads": 6}

# Everything is imported, and the allocator warm, by the first merge; then those are measured that are asked for.
# `VmHWM`, the most memory that was resident, counts pages of mapped files too; 5 in clear_refs begins it anew.
PROGRAM = """
import gc, io, json, logging, re, sys
from pathlib import Path
from longlora.merge import merge_adapter
from longlora.merge import merging as run
from longlora.merge.changes import ShardMergeUnsupported

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def extra_bytes(name):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    merge_adapter(adapter, output / name, check=False)
    assert ("model in memory" in said.getvalue()) == (name == "in memory")
    return resident("VmHWM") - before

def refuse(*_):
    raise ShardMergeUnsupported("asked for")

logging.basicConfig(stream=(said := io.StringIO()))
warm, adapter, output = map(Path, sys.argv[1:])
merge_adapter(warm, output / "warm", check=False)
result = {"by shard": extra_bytes("by shard")}
run.find_changes = refuse
print(json.dumps(result | {"in memory": extra_bytes("in memory")}))
"""


def save_adapter(base: Path, folder: Path) -> None:
    """An adapter on all linear layers: every file of the base changes."""
    peft_adapter(base, folder, r=8, target_modules="all-linear")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured with Linux's /proc")
def test_peak_memory_is_three_files_at_most(base_model: Path, tmp_path: Path, seed: int) -> None:
    small = save_base(tmp_path / "small", "llama", seed, base_model)
    save_adapter(small, tmp_path / "warm")
    base = save_base(tmp_path / "base", "llama", seed, base_model, shard="16MB", **WIDE)
    save_adapter(base, tmp_path / "adapter")
    sizes = [file.stat().st_size for file in base.glob("*.safetensors")]
    assert len(sizes) > 7

    # Memory that is freed goes back at once, and counts no more.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    paths = tmp_path / "warm", tmp_path / "adapter", tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths], env=environment, check=True, capture_output=True, text=True
    )
    extra_bytes = json.loads(done.stdout.splitlines()[-1])
    assert extra_bytes["by shard"] < 3 * max(sizes)
    assert extra_bytes["in memory"] > sum(sizes)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file takes more than half a megabyte: enough for all but the weights. Writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_leaves_nothing(
    base_model: Path, tmp_path: Path, seed: int, request: pytest.FixtureRequest
) -> None:
    base = save_base(tmp_path / "base", "llama", seed, base_model, shard="4MB", hidden_size=384)
    save_adapter(base, tmp_path / "adapter")
    request.getfixturevalue("small_files")
    output = tmp_path / "out" / "merged"
    with pytest.raises(CheckpointError, match=r"cannot be written .*is the disk full\?"):
        merge_adapter(tmp_path / "adapter", output, check=False)
    assert list(output.parent.iterdir()) == []


def test_a_disk_that_is_too_small_is_noticed_at_once(
    base_model: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path / "base", "llama", seed, base_model)
    save_adapter(base, tmp_path / "adapter")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="make room or choose another location"):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")
