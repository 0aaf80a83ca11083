"""The demo: extend the tiny model with three methods, and compare them with the base and with new positions alone.

Every number in the report is measured in the run.
"""

import logging
import os
import platform
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from longlora.config import Recipe, parse_recipe
from longlora.data.document_rows import tokenize_documents
from longlora.data.sources import read_documents
from longlora.demo.handout import DemoResult, write_report
from longlora.demo.recall_text import write_recall_documents
from longlora.distributed import Processes
from longlora.evaluation.perplexity import perplexity_by_length
from longlora.evaluation.retrieval import LOG_FILE, Sweep, retrieve
from longlora.evaluation.retrieval_tests import recall
from longlora.evaluation.subject import Subject
from longlora.merge import merge_adapter
from longlora.models.load import (
    extended_config,
    load_config,
    load_for_inference,
    load_tokenizer,
    load_weights,
    model_source,
)
from longlora.support.files import write_atomically
from longlora.support.journal import read_json_lines
from longlora.support.machine import package_versions
from longlora.tiny import TINY_MODEL
from longlora.tiny.stdlib import standard_library_files
from longlora.training.run import train

logger = logging.getLogger("longlora")

CONTEXT_LENGTH = 1024
LENGTHS = (128, 256, 512, 1024)
EVALUATION_STRIDE = 64
EVALUATION_TARGETS = 4096
RECALL = Sweep(lengths=(256, 512, 1024), depths=(0.0, 0.5), num_trials=10, beyond=True)
RECALL_DOCUMENTS = 400  # each as long as a row; they make up a seventh of the rows
MAX_STEPS = 80
SHARED_SETTINGS: dict[str, Any] = {
    "model_name_or_path": TINY_MODEL,
    "context_length": CONTEXT_LENGTH,
    "tuning": "lora+",
    # All linear layers, and a large rank for the width: such a small model has little spare capacity, and a short run
    # must change it a lot. Positions, rate and layers with full attention were chosen by experiment (docs/results.md).
    "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "max_steps": MAX_STEPS,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 8,
    "save_steps": MAX_STEPS,
    "gradient_checkpointing": False,
    "chunked_loss": False,  # a sixth of the time, to save memory that so few logits do not take
    "dtype": "float32",
}
YARN = {"rope_type": "yarn", "base_context": 224}
"""In the base's rows hardly any question was more than 230 tokens from its answer. With a base context of 256, these
are stretched to 920 tokens, and anything farther back is not found (docs/log.md)."""
METHODS: dict[str, dict[str, Any]] = {
    "longlora": {"attention": {"pattern": "s2"}, "rope": {"rope_type": "linear"}},
    "recommended": {"attention": {"shift": False, "full_attention_interval": 6}, "rope": YARN},
    "full attention": {"attention": {"pattern": "full"}, "rope": YARN},
}
"""Positions and attention of the trained models: the paper's, ours, and the reference."""
RECOMMENDED = "recommended"


def run_demo(output: Path) -> DemoResult:
    """Train, evaluate, merge and report into `output`; after an interruption, another call continues there."""
    evaluation = {
        "texts": "held-out files of Python's standard library",
        "stride": EVALUATION_STRIDE,
        "max_targets": EVALUATION_TARGETS,
        "lengths": LENGTHS,
        "recall": asdict(RECALL),
    }
    result = DemoResult({**SHARED_SETTINGS, "methods": METHODS, "evaluation": evaluation}, _environment())
    source = read_documents([str(path) for path in standard_library_files("validation")])
    tokenizer = load_tokenizer(model_source(TINY_MODEL))
    documents = tokenize_documents(source, tokenizer, cache_dir=output / "cache")["input_ids"]

    def evaluate(name: str, model: PreTrainedModel | PeftModel) -> None:
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
        # One of eight key-value pairs, at the start or in the middle of the text.
        subject = Subject(name=name, model=model, tokenizer=tokenizer)
        asked = retrieve(subject, recall(chat=False), RECALL, output / "recall" / name, Processes())
        result.recall[name] = {length: share.share for length, share in asked.shares().items()}
        result.seconds.setdefault(name, {})["evaluation"] = time.monotonic() - started

    evaluate("base", load_for_inference(TINY_MODEL)[0])
    evaluate("positions only", base_with_positions(output))
    for name in METHODS:
        evaluate(name, load_for_inference(_train(result, name, output))[0])
    merged = merge_adapter(Path(method_recipe(RECOMMENDED, output).output_dir) / "adapter", output / "merged")
    names = ("largest_difference", "largest_logit", "relative_difference", "probe_tokens")
    result.merge = {name: getattr(merged, name) for name in names}

    result.answers = _an_answer(output)
    write_report(result, output)
    return result


def method_recipe(name: str, output: Path) -> Recipe:
    """Return the recipe of one method; methods differ only in positions and training attention."""
    return parse_recipe(
        {
            **SHARED_SETTINGS,
            **METHODS[name],
            "output_dir": str(output / name.replace(" ", "-")),
            "data": {"source": training_texts(output), "cache_dir": str(output / "cache")},
        }
    )


def training_texts(output: Path) -> list[str]:
    """Return the texts that all methods train on: code, and synthetic documents with questions, as in pretraining.

    The documents are as long as the new context. They are written into `output`, and come first, so each is one row.
    """
    files, tokenizer = standard_library_files("train"), load_tokenizer(model_source(TINY_MODEL))
    made_up = output / "recall.jsonl"
    write_recall_documents(made_up, files, tokenizer, CONTEXT_LENGTH, count=RECALL_DOCUMENTS)
    return [str(made_up), *map(str, files)]


def _train(result: DemoResult, name: str, output: Path) -> Path:
    """Train one method, unless an earlier start of the demo already has; time only the last start."""
    recipe = method_recipe(name, output)
    directory = Path(recipe.output_dir)
    seconds_file = directory / "seconds.txt"
    if not seconds_file.exists():
        logger.info("\n%s", name)
        started = time.monotonic()
        train(recipe)
        write_atomically(seconds_file, f"{time.monotonic() - started:.1f}\n")
    result.seconds[name] = {"training": float(seconds_file.read_text())}
    return directory / "adapter"


def _an_answer(output: Path) -> dict[str, Any]:
    """Find a question at the target length that the recommended model answers and the base does not."""
    trials: dict[str, list[dict[str, Any]]] = {
        name: read_json_lines(output / "recall" / name / LOG_FILE)[1:] for name in (RECOMMENDED, "base")
    }
    for ours, base in zip(trials[RECOMMENDED], trials["base"], strict=True):
        if ours["length"] == CONTEXT_LENGTH and ours["scores"]["generated"] > base["scores"]["generated"]:
            shared = {"expected": ours["expected"][0], "distance": ours["distance"]}
            said = {RECOMMENDED: ours["answer"], "base": base["answer"]}
            return shared | {name: answer.strip().partition("\n")[0] for name, answer in said.items()}
    return {}


def base_with_positions(output: Path) -> PreTrainedModel:
    """Return the base with the positions of the recommended model, but none of its training."""
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
