"""What a run came to, beside what was planned: `summary.json`, a few lines for the terminal, the curves, samples.

All of it comes after the result is saved, may fail without harm, and is made up for by the same command.
"""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from longlora.config import Recipe
from longlora.distributed import current_strategy, num_processes
from longlora.errors import ConfigError, LongLoRAError
from longlora.models.load import compute_dtype, load_for_inference
from longlora.planner import GIB, make_plan, recognise_gpu
from longlora.support.figures import new_figure, plain, save_figure
from longlora.support.files import write_atomically
from longlora.support.journal import read_json_lines
from longlora.training.callbacks import Stopwatch, peak_memory_bytes
from longlora.training.preflight import planned_run
from longlora.training.run_directory import RunDirectory
from longlora.training.sampled_answers import held_out_conversations, write_samples
from longlora.training.save_and_resume import Trained

logger = logging.getLogger("longlora")

# The losses at the two ends of a run are means over this part of its steps.
_END_FRACTION = 0.05
_SMOOTHED_STEPS = 20
_LOSS, _VALIDATION, _RATE = "#1f5fa8", "#c2571a", "#666666"


def write_run_summary(recipe: Recipe, run: RunDirectory, trained: Trained | None) -> None:
    """Make what is missing of `summary.json`, `curves.png` and, after fine-tuning, `samples.md`; tell their gist.

    Args:
        recipe: the run.
        run: the run's folder, with its result.
        trained: what this start trained; None where an earlier one did, whose result is loaded if it is to answer.
    """
    if not run.summary.exists():
        with attempted("the summary"):
            write_summary(recipe, run, trained.watch if trained else None)
    if not run.curves.exists():
        with attempted("drawing the curves"):
            draw_curves(read_json_lines(run.metrics), run.curves)
            logger.info("curves: %s", run.curves)
    if recipe.samples_answers and not run.samples.exists():
        with attempted("answering held-out questions"):
            _sample_answers(recipe, run, trained)


@contextmanager
def attempted(what: str) -> Iterator[None]:
    """Turn a failure into a warning, for what comes after the result is saved."""
    try:
        yield
    except Exception as error:  # whatever it is, what was trained is there
        logger.warning(
            "%s failed (%s: %s); what was trained is saved, and the same command tries this again",
            what,
            type(error).__name__,
            error,
            exc_info=not isinstance(error, LongLoRAError),
        )


def write_summary(recipe: Recipe, run: RunDirectory, watch: Stopwatch | None) -> None:
    """Write `summary.json` into the run's folder and tell the gist of it."""
    metrics: list[dict[str, Any]] = read_json_lines(run.metrics)
    losses = [line["loss"] for line in metrics if "loss" in line]
    validation = [math.exp(line["eval_loss"]) for line in metrics if "eval_loss" in line]
    end = max(1, round(len(losses) * _END_FRACTION))
    measured: dict[str, Any] = {
        "steps": recipe.max_steps,
        "first_loss": _mean(losses[:end]),
        "last_loss": _mean(losses[-end:]),
        "first_validation_perplexity": validation[0] if validation else None,
        "last_validation_perplexity": validation[-1] if validation else None,
        "last_start": watch
        and {
            "steps": watch.steps,
            "seconds": watch.seconds,
            "tokens_per_second": watch.tokens_per_second,
            "processes": num_processes(),
        },
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_memory_of": torch.cuda.get_device_name() if torch.cuda.is_available() else "process",
        "plan": _plan(recipe),
    }
    write_atomically(run.summary, json.dumps(measured, indent=2) + "\n")
    _tell(measured, losses_at_an_end=end, last_logged=losses[-1] if losses else None)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _plan(recipe: Recipe) -> dict[str, Any] | None:
    """What `longlora plan` says of this run on these GPUs; None without a GPU, which is what it is about."""
    if not torch.cuda.is_available():
        return None
    try:
        planned = planned_run(recipe, num_gpus=num_processes(), strategy=current_strategy())
    except ConfigError as error:
        logger.info("no plan to compare with: %s", error)
        return None
    gpu = recognise_gpu(torch.cuda.get_device_name())
    plan = make_plan(planned, memory_bytes=torch.cuda.get_device_properties(0).total_memory, gpu=gpu)
    seconds = plan.duration.seconds / planned.steps if plan.duration else None
    return {"memory_bytes": plan.memory.total, "seconds_per_step": seconds}


def _tell(measured: dict[str, Any], *, losses_at_an_end: int, last_logged: float | None) -> None:
    last, plan = measured["last_start"], measured["plan"]
    if last_logged is not None:
        count = losses_at_an_end
        means = f", means of the first and the last {count} logged losses; the last alone {last_logged:.3f}"
        logger.info("loss %.3f -> %.3f%s", measured["first_loss"], measured["last_loss"], means if count > 1 else "")
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


def draw_curves(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss, validation loss and learning rate of the lines of `metrics.jsonl` over the steps, into a PNG file.

    A heavy line is the mean of the last twenty logged losses, a light one each of them.
    """
    training = [(line["step"], line["loss"], line["learning_rate"]) for line in metrics if "loss" in line]
    validation = [(line["step"], line["eval_loss"]) for line in metrics if "eval_loss" in line]
    figure, (axes, rate_axes) = new_figure(8, 4.8, nrows=2, height_ratios=(4, 1), sharex=True)
    if training:
        steps, losses, rates = zip(*training, strict=True)
        few = len(training) <= _SMOOTHED_STEPS
        axes.plot(steps, losses, color=_LOSS, alpha=1 if few else 0.3, linewidth=1.5 if few else 0.8, label="training")
        if not few:
            axes.plot(steps, _smoothed(losses), color=_LOSS, linewidth=1.8, label="training, mean of 20")
        rate_axes.plot(steps, rates, color=_RATE, linewidth=1.2)
    if validation:
        steps, losses = zip(*validation, strict=True)
        axes.plot(steps, losses, color=_VALIDATION, marker="o", markersize=4, label="validation, full attention")
    if training or validation:
        axes.legend(frameon=False)
    axes.set_ylabel("loss (nats per token)")
    rate_axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    plain(axes)
    plain(rate_axes)
    save_figure(figure, path)


def _smoothed(values: Sequence[float]) -> list[float]:
    windows = (values[max(0, end - _SMOOTHED_STEPS) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]


def _sample_answers(recipe: Recipe, run: RunDirectory, trained: Trained | None) -> None:
    if trained is None:
        model, tokenizer = load_for_inference(
            run.result,
            dtype=recipe.dtype,
            quantization=recipe.quantization,
            trust_remote_code=recipe.trust_remote_code,
        )
    elif trained.is_whole:
        model, tokenizer = trained.model, trained.tokenizer
        if model.device.type == "cpu" and torch.cuda.is_available():  # read from a checkpoint
            model.to("cuda")
    else:
        logger.info("no sampled answers: no process holds the whole model; the same command, once more, loads it whole")
        return
    data, count = recipe.data, recipe.num_sampled_answers
    assert data.validation_source is not None
    most = max(count, data.max_validation_rows)
    write_samples(
        model,
        tokenizer,
        held_out_conversations(data.validation_source, data.validation_split, most=most),
        run.samples,
        count=count,
        context_length=recipe.context_length,
        dtype=compute_dtype(recipe.dtype),
    )
