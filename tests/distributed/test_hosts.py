"""Two launchers, as on two machines, with rows that processes of one or of both share: trained, broken off, resumed."""

import random
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.distributed.conftest import TIMEOUT_SECONDS, TrainCommand, losses
from tests.distributed.test_equality import assert_same_result
from tests.distributed.test_interruptions import start, steps_done, wait_until

from longlora.config import parse_recipe
from longlora.training.run import train

pytestmark = [pytest.mark.cpu, pytest.mark.slow]

# An odd length that divides among none, groups that cross from one process to the next, full attention at the end.
ROWS = {"context_length": 127, "attention": {"group_size": 50, "sink_tokens": 1, "dense_finish": 0.3}}


def start_hosts(command: list[str]) -> list[subprocess.Popen[str]]:
    """Start a command once for each of two hosts, that meet on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = ["--nodes", "2", "--main-address", "127.0.0.1", "--main-port", str(port)]
    return [start([*command, *meeting, "--node-rank", str(rank)]) for rank in (0, 1)]


def complete_hosts(command: list[str]) -> list[str]:
    """Run a command on both to its end, and return what each has said."""
    hosts = start_hosts(command)
    said = [host.communicate(timeout=TIMEOUT_SECONDS)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    return said


@pytest.mark.parametrize(("strategy", "per_host"), [("ddp", 1), ("fsdp2", 2)], ids=["across", "within"])
def test_a_rank_is_killed_and_the_run_resumes(
    train_command: TrainCommand,
    recipe_values: dict[str, Any],
    tmp_path: Path,
    seed: int,
    strategy: str,
    per_host: int,
) -> None:
    """Two processes share each row: one of each host, or both of one. Then one is killed at a random step."""
    changes = {**ROWS, "max_steps": 20, "save_steps": 2}
    train(parse_recipe({**recipe_values, **changes}))
    options = ("--strategy", strategy, "--processes", str(per_host), "--sequence-parallel", "2")
    command = train_command("two", *options, gradient_accumulation_steps=2 // per_host, **changes)
    hosts = start_hosts(command)
    last = random.Random(seed).randint(2, 10)
    wait_until(lambda: steps_done(tmp_path / "two") >= last and whole_checkpoints(tmp_path / "two"), hosts[0])
    ranks = [child for host in hosts for child in psutil.Process(host.pid).children()]
    victim = random.Random(seed).choice(ranks)
    number = victim.environ()["RANK"]
    victim.kill()
    since = time.monotonic()
    said = [host.communicate(timeout=TIMEOUT_SECONDS)[1] for host in hosts]
    assert time.monotonic() - since < 60
    assert not any(rank.is_running() for rank in ranks)
    here, there = (hosts.index(host) for host in sorted(hosts, key=lambda host: host.returncode, reverse=True))
    assert [hosts[here].returncode, hosts[there].returncode] == [128 + signal.SIGKILL, 1]
    assert f"longlora: process {number} was ended by SIGKILL" in said[here]
    assert f"longlora: process {number} is gone" in said[there]
    assert "Traceback" not in "".join(said)
    assert not (tmp_path / "two" / "adapter").exists(), "killed too late to show anything"

    resumed = complete_hosts(command)
    assert "resuming from" in resumed[0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    assert_same_result(tmp_path / "one" / "adapter", tmp_path / "two" / "adapter", tolerance=1e-5)


def whole_checkpoints(run: Path) -> list[Path]:
    return list(run.glob("checkpoints/*/digests.json"))
