"""The whole job on one small example: extend the tiny model, and compare five ways of doing it before and after.

Everything is measured in the run: nothing in the report comes from elsewhere.
"""

import logging
import os
import platform
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from longlora.config import Recipe, parse_recipe
from longlora.data import read_documents, tokenize_documents
from longlora.demo.handout import DemoResult, write_report
from longlora.errors import ConfigError
from longlora.evaluation.perplexity import perplexity_by_length
from longlora.merge import merge_adapter
from longlora.models.load import (
    extended_config,
    load_config,
    load_for_inference,
    load_tokenizer,
    load_weights,
    model_source,
)
from longlora.support.files import whole_directory, write_atomically
from longlora.support.packages import package_versions
from longlora.tiny import TINY_MODEL
from longlora.tiny.stdlib import standard_library_files
from longlora.training.run import train
from longlora.training.run_directory import open_run

logger = logging.getLogger("longlora")

CONTEXT_LENGTH = 1024
LENGTHS = (128, 256, 512, 1024, 2048)
EVALUATION_STRIDE = 64
EVALUATION_TARGETS = 4096
MAX_STEPS = 110
DENSE_FINISH = 0.4
SHARED_SETTINGS: dict[str, Any] = {
    "model_name_or_path": TINY_MODEL,
    "context_length": CONTEXT_LENGTH,
    "tuning": "lora+",
    # All linear layers and a rank that is large for its width: so small a model has little to spare, and a short run
    # has to move it far. The learning rate and the length of the dense finish were chosen on evidence (docs/log.md).
    "lora": {"r": 32, "lora_alpha": 64, "target_modules": "all-linear"},
    "max_steps": MAX_STEPS,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 4e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "save_steps": MAX_STEPS - round(MAX_STEPS * DENSE_FINISH),  # where the runs with and without the finish part
    "gradient_checkpointing": False,
    "dtype": "float32",
}
METHODS: dict[str, dict[str, Any]] = {
    "longlora": {"pattern": "s2"},
    "longlora, dense finish": {"pattern": "s2", "dense_finish": DENSE_FINISH},
    "full attention": {"pattern": "full"},
}
RECOMMENDED = "longlora, dense finish"


def run_demo(output: Path) -> DemoResult:
    """Train, evaluate, merge and report into `output`; started again after an interruption, go on where it stopped.

    Raises:
        ConfigError: `output` holds a finished demo.
    """
    if (output / "report.json").exists():
        raise ConfigError(f"{output} holds a finished demo; choose another folder, or delete it")
    evaluation = {
        "texts": "held-out files of Python's standard library",
        "stride": EVALUATION_STRIDE,
        "max_targets": EVALUATION_TARGETS,
        "lengths": LENGTHS,
    }
    result = DemoResult({**SHARED_SETTINGS, "methods": METHODS, "evaluation": evaluation}, _environment())
    source = read_documents([str(path) for path in standard_library_files("validation")])
    tokenizer = load_tokenizer(model_source(TINY_MODEL))
    documents = tokenize_documents(source, tokenizer, cache_dir=output / "cache")["input_ids"]

    _evaluate(result, "base", load_for_inference(TINY_MODEL)[0], documents)
    _evaluate(result, "interpolation only", interpolated_base(output), documents)
    for name in METHODS:
        adapter = _train(result, name, output)
        _evaluate(result, name, load_for_inference(adapter)[0], documents)
    merged = merge_adapter(Path(method_recipe(RECOMMENDED, output).output_dir) / "adapter", output / "merged")
    names = ("largest_difference", "largest_logit", "relative_difference", "probe_tokens")
    result.merge = {name: getattr(merged, name) for name in names}

    write_report(result, output)
    return result


def method_recipe(name: str, output: Path) -> Recipe:
    """The recipe of one method; all that differs between methods is the attention they train with."""
    return parse_recipe(
        {
            **SHARED_SETTINGS,
            "output_dir": str(output / name.replace(", ", "-").replace(" ", "-")),
            "attention": METHODS[name],
            "data": {
                "source": [str(path) for path in standard_library_files("train")],
                "cache_dir": str(output / "cache"),
            },
        }
    )


def _train(result: DemoResult, name: str, output: Path) -> Path:
    """Train one method, unless an earlier start of the demo has; the seconds are those of its last start."""
    recipe = method_recipe(name, output)
    directory = Path(recipe.output_dir)
    seconds_file = directory / "seconds.txt"
    if not seconds_file.exists():
        logger.info("\n%s", name)
        if name == RECOMMENDED and not directory.exists():
            # The steps that both recipes share are trained already: the same run, in less time.
            checkpoint = f"checkpoint-{recipe.first_dense_step}"
            source = Path(method_recipe("longlora", output).output_dir)
            with open_run(recipe) as run:
                for name in (run.metrics.name, run.data.name):
                    shutil.copy(source / name, run.root)
                with whole_directory(run.checkpoints / checkpoint) as copy:
                    shutil.copytree(source / "checkpoints" / checkpoint, copy, dirs_exist_ok=True)
        started = time.monotonic()
        train(recipe)
        write_atomically(seconds_file, f"{time.monotonic() - started:.1f}\n")
    result.seconds[name] = {"training": float(seconds_file.read_text())}
    if name == RECOMMENDED:
        result.seconds[name]["shared_steps"] = recipe.first_dense_step
    return directory / "adapter"


def _evaluate(result: DemoResult, name: str, model: PreTrainedModel | PeftModel, documents: list[list[int]]) -> None:
    started = time.monotonic()
    measured = perplexity_by_length(
        model,
        documents,
        lengths=LENGTHS,
        stride=EVALUATION_STRIDE,
        max_targets=EVALUATION_TARGETS,
        description=name,
    )
    result.perplexity[name] = {length: value.perplexity for length, value in measured.items()}
    result.standard_error[name] = {length: value.standard_error for length, value in measured.items()}
    result.seconds.setdefault(name, {})["evaluation"] = time.monotonic() - started


def interpolated_base(output: Path) -> PreTrainedModel:
    """The base with the positions of the extended models and none of their training."""
    name = model_source(TINY_MODEL)
    config = load_config(name)
    extended_config(config, method_recipe(RECOMMENDED, output))
    return load_weights(name, config, dtype=torch.float32, attention="sdpa").eval()


def _environment() -> dict[str, Any]:
    return {
        "base_context": load_config(model_source(TINY_MODEL)).max_position_embeddings,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch on {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "packages": package_versions("longlora", "torch", "transformers", "peft", "trl"),
    }
