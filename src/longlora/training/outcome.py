"""What a run came to, beside what was planned: `summary.json`, a few lines for the terminal, and the curves."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.checkpoint import write_atomically
from longlora.config import Recipe
from longlora.errors import ConfigError
from longlora.planner import GIB, make_plan, recognise_gpu
from longlora.training.curves import draw_curves
from longlora.training.directory import RunDirectory, read_metrics
from longlora.training.engines import engine
from longlora.training.planned import planned_run
from longlora.training.processes import num_processes
from longlora.training.samples import held_out_conversations, write_samples
from longlora.training.stopwatch import Stopwatch, peak_memory_bytes

logger = logging.getLogger("longlora")

# The losses at the two ends of a run are means over this part of its steps.
_END_FRACTION = 0.05


def look_back(
    recipe: Recipe,
    model: PreTrainedModel | PeftModel | None,
    tokenizer: PreTrainedTokenizerBase,
    run: RunDirectory,
    *,
    watch: Stopwatch | None,
) -> None:
    """Leave `summary.json` and `curves.png` in the run's folder, after fine-tuning `samples.md`, and tell their gist.

    Args:
        recipe: the run.
        model: as it was trained; None where no process holds the whole of it, and no questions are answered.
        tokenizer: with its chat template, after fine-tuning.
        run: the run's folder.
        watch: what this start measured; None if it only finished what an earlier one trained.
    """
    write_outcome(recipe, run, watch)
    data, count = recipe.data, recipe.num_sampled_answers
    if data.kind != "sft" or data.validation_source is None or not count:
        return
    if model is None:
        logger.info("no sampled answers: no process holds the whole model; `longlora chat` asks it")
        return
    write_samples(
        model,
        tokenizer,
        held_out_conversations(data.validation_source, data.validation_split, count),
        run.root / "samples.md",
        context_length=recipe.context_length,
    )


def write_outcome(recipe: Recipe, run: RunDirectory, watch: Stopwatch | None) -> None:
    """Write `summary.json` and `curves.png` into the run's folder and tell the gist of them."""
    metrics = read_metrics(run.metrics)
    losses = [line["loss"] for line in metrics if "loss" in line]
    validation = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    end = max(1, round(len(losses) * _END_FRACTION))
    measured: dict[str, Any] = {
        "steps": recipe.max_steps,
        "first_loss": _mean(losses[:end]),
        "last_loss": _mean(losses[-end:]),
        "first_validation_perplexity": math.exp(validation[0]) if validation else None,
        "last_validation_perplexity": math.exp(validation[-1]) if validation else None,
        "last_start": watch
        and {
            "steps": watch.steps,
            "seconds": watch.seconds,
            "tokens_per_second": watch.tokens_per_second,
            "processes": num_processes(),
        },
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_memory_of": torch.cuda.get_device_name() if torch.cuda.is_available() else "process",
    }
    measured["plan"] = _plan(recipe)
    write_atomically(run.root / "summary.json", json.dumps(measured, indent=2) + "\n")
    draw_curves(metrics, run.root / "curves.png")
    _tell(measured, run.root)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _plan(recipe: Recipe) -> dict[str, Any] | None:
    """What `longlora plan` says of this run on these GPUs; None without a GPU, which is what it is about."""
    if not torch.cuda.is_available():
        return None
    try:
        planned = planned_run(recipe, num_gpus=num_processes(), strategy=engine())
    except ConfigError as error:
        logger.info("no plan to compare with: %s", error)
        return None
    gpu = recognise_gpu(torch.cuda.get_device_name())
    plan = make_plan(planned, memory_bytes=torch.cuda.get_device_properties(0).total_memory, gpu=gpu)
    seconds = plan.duration.seconds / planned.steps if plan.duration else None
    return {"memory_bytes": plan.memory.total, "seconds_per_step": seconds}


def _tell(measured: dict[str, Any], root: Path) -> None:
    last, plan = measured["last_start"], measured["plan"]
    if measured["first_loss"] is not None:
        logger.info("loss %.3f -> %.3f", measured["first_loss"], measured["last_loss"])
    if measured["first_validation_perplexity"] is not None:
        logger.info(
            "validation perplexity, full attention: %.2f -> %.2f",
            measured["first_validation_perplexity"],
            measured["last_validation_perplexity"],
        )
    if last and last["steps"]:
        step = last["seconds"] / last["steps"]
        planned = f" (planned {plan['seconds_per_step']:.3g})" if plan and plan["seconds_per_step"] else ""
        logger.info("%.3g seconds a step%s, %s tokens/s", step, planned, f"{last['tokens_per_second']:,.0f}")
    planned = f" (planned {plan['memory_bytes'] / GIB:.1f})" if plan else ""
    logger.info(
        "at most %.1f GiB of memory, %s%s", measured["peak_memory_bytes"] / GIB, measured["peak_memory_of"], planned
    )
    logger.info("curves: %s", root / "curves.png")
