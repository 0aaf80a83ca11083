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
from tests.families.families import FAMILIES
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.cpu, pytest.mark.slow]

FULL: dict[str, Any] = {"attention": {"pattern": "full"}}
CASES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "olmo2", "gpt_oss")},
    "llama, full": FULL | {"chunked_loss": False, "per_device_train_batch_size": 2, "gradient_checkpointing": True},
    "qwen3, full": FULL | {"embedding_learning_rate": 2e-2},
    "llama, far targets": {"far_target_weight": 2.0, "far_target_beyond": 16},
    "llama, far targets of logits": {"far_target_weight": 2.0, "far_target_beyond": 16, "chunked_loss": False},
}


@pytest.fixture
def short_documents(tmp_path: Path, seed: int) -> Path:
    """Documents of 2 to 150 letters, so that rows of 127 tokens have boundaries anywhere."""
    source = random.Random(seed)
    documents = ["".join(source.choices("etaoin shrdlu", k=source.randint(2, 150))) for _ in range(60)]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return file


@pytest.mark.parametrize("case", CASES)
def test_one_two_and_four_processes_agree(
    case: str, train_command: TrainCommand, base_model: Path, short_documents: Path, tmp_path: Path, seed: int
) -> None:
    """Odd lengths, groups across the borders, two rows accumulated, full attention in the last three steps."""
    model = tmp_path / "model"
    shutil.copytree(base_model, model)
    family = next(family for family in FAMILIES if family.model_type == case.partition(",")[0])
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(family.config()).save_pretrained(model)
    changes: dict[str, Any] = {
        "model_name_or_path": str(model),
        "context_length": 127,
        "attention": {"group_size": 50, "sink_tokens": 1, "dense_finish": 0.3},
        "dtype": "float32",
        "data": {"source": str(short_documents), "cache_dir": str(tmp_path / "cache")},
        **CASES[case],
    }
    commands = []
    for processes in (1, 2, 4):
        name = str(processes)
        arguments = train_command(name, **changes, sequence_parallel_size=processes)[3:]
        commands.append([processes, str(tmp_path / f"{name}.log"), *arguments])
    python = [sys.executable, "-m", "tests.distributed.commands", json.dumps(commands)]
    options = {"cwd": REPOSITORY, "env": environment(), "timeout": TIMEOUT_SECONDS}
    done = subprocess.run(python, capture_output=True, text=True, **options)
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in ("1", "2", "4")}
    assert json.loads(done.stdout) == [[0], [0] * 2, [0] * 4], (done.stderr, logs)
    for name in ("2", "4"):
        assert f"each row in {name} of {name} processes (ddp)" in logs[name]
        assert len(losses(tmp_path / name)) == 10
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "1"), abs=1e-4), f"seed {seed}"
        assert_same_result(tmp_path / "1" / "adapter", tmp_path / name / "adapter", tolerance=1e-4)
