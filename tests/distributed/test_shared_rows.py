"""Ten steps by the command line with rows that two and four processes share are those of one process."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import REPOSITORY
from tests.distributed.conftest import TIMEOUT_SECONDS, TrainCommand, environment, losses
from tests.distributed.test_equality import assert_same_result
from tests.families.families import FAMILIES, VOCABULARY
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.cpu, pytest.mark.slow]

FULL: dict[str, Any] = {"attention": {"pattern": "full"}}
CASES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "olmo2", "gpt_oss")},
    "phi3": {"rope": {"rope_type": "theta"}},
    "llama, full": FULL | {"chunked_loss": False, "per_device_train_batch_size": 2, "gradient_checkpointing": True},
    "qwen3, full": FULL | {"embedding_learning_rate": 2e-2},
    "llama, far targets": {"far_target_weight": 2.0, "far_target_beyond": 16},
    "llama, far targets of logits": {"far_target_weight": 2.0, "far_target_beyond": 16, "chunked_loss": False},
}
# gpt-oss's own positions reach 131,072 tokens, and the balance of its experts is that of each part of a row.
SETTINGS: dict[str, Any] = {
    "gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}, "router_aux_loss_coef": 0.0}
}


@pytest.fixture
def short_documents(tmp_path: Path, seed: int) -> Path:
    """Documents of 2 to 150 letters, so that rows of 127 tokens have boundaries anywhere."""
    source = random.Random(seed)
    documents = ["".join(source.choices("etaoin shrdlu", k=source.randint(2, 150))) for _ in range(60)]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return file


def run(commands: list[list[Any]]) -> None:
    """Run commands, each a count of processes, a file for what they say, and arguments."""
    python = [sys.executable, "-m", "tests.distributed.commands", json.dumps(commands)]
    options = {"cwd": REPOSITORY, "env": environment(), "timeout": TIMEOUT_SECONDS}
    done = subprocess.run(python, capture_output=True, text=True, **options)
    said = [Path(log).read_text() for _, log, *_ in commands]
    assert json.loads(done.stdout) == [[0] * count for count, *_ in commands], (done.stderr, said)


@pytest.mark.parametrize("case", CASES)
def test_one_two_and_four_processes_agree(
    case: str, train_command: TrainCommand, base_model: Path, short_documents: Path, tmp_path: Path, seed: int
) -> None:
    """Odd lengths, groups across the borders, two rows accumulated, full attention in the last three steps."""
    model = tmp_path / "model"
    shutil.copytree(base_model, model)
    name = case.partition(",")[0]
    family = next(family for family in FAMILIES if family.model_type == name)
    torch.manual_seed(seed)
    # qwen2's tokenizer class brings one token more.
    config = family.config(vocab_size=VOCABULARY + 1, **SETTINGS.get(name, {}))
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    changes: dict[str, Any] = {
        "model_name_or_path": str(model),
        "context_length": 127,
        "attention": {"group_size": 50, "sink_tokens": 1, "dense_finish": 0.3},
        "dtype": "float32",
        "merge": False,
        "data": {"source": str(short_documents), "cache_dir": str(tmp_path / "cache")},
        **CASES[case],
    }
    commands = []
    for processes in (1, 2, 4):
        name = str(processes)
        arguments = train_command(name, **changes, sequence_parallel_size=processes)[3:]
        commands.append([processes, str(tmp_path / f"{name}.log"), *arguments])
    run(commands)
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in ("2", "4")}
    for name in ("2", "4"):
        assert f"each row in {name} of {name} processes (ddp)" in logs[name]
        assert len(losses(tmp_path / name)) == 10
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "1"), abs=1e-4), f"seed {seed}"
        assert_same_result(tmp_path / "1" / "adapter", tmp_path / name / "adapter", tolerance=1e-4)


def test_a_run_resumes_with_rows_in_other_numbers_of_processes(
    train_command: TrainCommand, short_documents: Path, tmp_path: Path
) -> None:
    """Begun by four processes to a row, ended by two and by one."""
    data = {"source": str(short_documents), "cache_dir": str(tmp_path / "cache")}
    attention = {"group_size": 50, "dense_finish": 0.3}
    changes = {"context_length": 127, "attention": attention, "data": data, "merge": False}

    def command(name: str, processes: int) -> list[Any]:
        arguments = train_command(name, **changes, sequence_parallel_size=processes)[3:]
        return [processes, str(tmp_path / f"{name}.log"), *arguments]

    run([command("one", 1), command("four", 4)])
    for name in ("by two", "by one"):
        shutil.copytree(tmp_path / "four", tmp_path / name)
        shutil.rmtree(tmp_path / name / "adapter")
        shutil.rmtree(tmp_path / name / "checkpoints" / "checkpoint-10")
    run([command("by two", 2), command("by one", 1)])
    for name in ("by two", "by one"):
        assert f"resuming from {tmp_path / name}" in (tmp_path / f"{name}.log").read_text()
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
        assert_same_result(tmp_path / "one" / "adapter", tmp_path / name / "adapter", tolerance=1e-5)
