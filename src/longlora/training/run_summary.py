"""The outcome of a run, compared with the plan: `summary.json`, a few lines in the terminal, curves, sampled answers.

All of it is made after the result is saved. It may fail without harm, and the same command makes up for it.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longlora.config import Recipe
from longlora.data.conversations import Conversation
from longlora.data.encode import IGNORED, UnusableConversationError, encode_conversation
from longlora.data.sources import read_conversations
from longlora.distributed import current_strategy, num_processes
from longlora.errors import ConfigError, LongLoRAError
from longlora.models.generation import plain_generation, plain_settings
from longlora.models.load import compute_dtype, load_for_inference
from longlora.planner.compute import GIB, recognise_gpu
from longlora.planner.plan import make_plan
from longlora.support.figures import new_figure, plain, save_figure
from longlora.support.files import write_atomically
from longlora.support.wording import shortened
from longlora.training.callbacks import ProgressBar, peak_memory_bytes
from longlora.training.checkpoints import Trained
from longlora.training.preflight import planned_run
from longlora.training.run_directory import RunDirectory, read_metrics, step_of

logger = logging.getLogger("longlora")

# The first and the last loss of a run are means over this fraction of its logged steps.
_END_FRACTION = 0.05
_SMOOTHED_STEPS = 20
_LOSS, _VALIDATION, _RATE = "#1f5fa8", "#c2571a", "#666666"
_MAX_NEW_TOKENS = 200
_SHOWN_CHARACTERS = 400


def write_run_summary(recipe: Recipe, run: RunDirectory, trained: Trained | None) -> None:
    """Create what is missing of `summary.json`, `curves.png` and, after fine-tuning, `samples.md`; log the highlights.

    `trained` is what this start trained; None if an earlier one did, whose result is then loaded for the samples.
    """
    if not run.summary.exists():
        with attempted("the summary"):
            write_summary(recipe, run, trained.measured if trained else None)
    if not run.curves.exists():
        with attempted("drawing the curves"):
            draw_curves(read_metrics(run.metrics), run.curves)
            logger.info("curves: %s", run.curves)
    if recipe.samples_answers and not run.samples.exists():
        with attempted("answering held-out questions"):
            _sample_answers(recipe, run, trained)


@contextmanager
def attempted(what: str) -> Iterator[None]:
    """Turn a failure into a warning, for work after the result is saved."""
    try:
        yield
    except Exception as error:  # whatever it is, what was trained is saved
        logger.warning(
            "%s failed (%s: %s); what was trained is saved, and the same command tries this again",
            what,
            type(error).__name__,
            error,
            exc_info=not isinstance(error, (LongLoRAError, OSError)),
        )


def write_summary(recipe: Recipe, run: RunDirectory, start: ProgressBar | None) -> None:
    """Write `summary.json` into the run's folder, and log its highlights."""
    metrics = read_metrics(run.metrics)
    losses = [line["loss"] for line in metrics if "loss" in line]
    validation = [math.exp(line["eval_loss"]) for line in metrics if "eval_loss" in line]
    end = max(1, round(len(losses) * _END_FRACTION))
    checkpoints = run.finished_checkpoints()
    measured: dict[str, Any] = {
        "steps": step_of(checkpoints[-1]) if checkpoints else recipe.max_steps,
        "first_loss": fmean(losses[:end]) if losses else None,
        "last_loss": fmean(losses[-end:]) if losses else None,
        "first_validation_perplexity": validation[0] if validation else None,
        "last_validation_perplexity": validation[-1] if validation else None,
        "last_start": start
        and {
            "steps": start.steps,
            "seconds": start.seconds,
            "tokens_per_second": start.tokens_per_second,
            "processes": num_processes(),
        },
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_memory_of": torch.cuda.get_device_name() if torch.cuda.is_available() else "process",
        "plan": _plan(recipe),
    }
    write_atomically(run.summary, json.dumps(measured, indent=2) + "\n")

    plan, memory = measured["plan"] or {}, measured["peak_memory_bytes"] / GIB
    if losses:
        means = f", means of the first and the last {end} logged losses; the last alone {losses[-1]:.3f}"
        logger.info("loss %.3f -> %.3f%s", measured["first_loss"], measured["last_loss"], means if end > 1 else "")
    if validation:
        logger.info("validation perplexity, full attention: %.2f -> %.2f", validation[0], validation[-1])
    if start and start.steps:
        planned = f" (planned {plan['seconds_per_step']:.3g})" if plan.get("seconds_per_step") else ""
        speed = f"{start.tokens_per_second:,.0f}"
        logger.info("%.3g seconds per step%s, %s tokens/s", start.seconds / start.steps, planned, speed)
    planned = f" (planned {plan['memory_bytes'] / GIB:.1f})" if plan else ""
    logger.info("at most %.1f GiB of memory, %s%s", memory, measured["peak_memory_of"], planned)


def _plan(recipe: Recipe) -> dict[str, Any] | None:
    """Return what `longlora plan` predicts for this run on these GPUs; None without a GPU."""
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


def draw_curves(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot loss, validation loss and learning rate from the lines of `metrics.jsonl` over the steps, as a PNG file.

    The heavy line is the mean of the last twenty logged losses, the light one the losses themselves.
    """
    training = [(line["step"], line["loss"], line.get("learning_rate", math.nan)) for line in metrics if "loss" in line]
    validation = [(line["step"], line["eval_loss"]) for line in metrics if "eval_loss" in line]
    figure, (axes, rate_axes) = new_figure(8, 4.8, nrows=2, height_ratios=(4, 1), sharex=True)
    if training:
        steps, losses, rates = zip(*training, strict=True)
        few = len(training) <= _SMOOTHED_STEPS
        axes.plot(steps, losses, color=_LOSS, alpha=1 if few else 0.3, linewidth=1.5 if few else 0.8, label="training")
        if not few:
            smoothed = [fmean(losses[max(0, end - _SMOOTHED_STEPS) : end]) for end in range(1, len(losses) + 1)]
            axes.plot(steps, smoothed, color=_LOSS, linewidth=1.8, label="training, mean of 20")
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


def _sample_answers(recipe: Recipe, run: RunDirectory, trained: Trained | None) -> None:
    """Let the model answer held-out questions: the answers show a reader what a loss cannot."""
    if trained is None:
        model, tokenizer = load_for_inference(
            run.result, dtype=recipe.dtype, quantization=recipe.quantization, trust_remote_code=recipe.trust_remote_code
        )
    elif trained.weights is None:
        model, tokenizer = trained.model, trained.tokenizer
        if model.device.type == "cpu" and torch.cuda.is_available():  # loaded from a checkpoint
            model.to("cuda")
    else:
        logger.info("no sampled answers: no process holds the whole model; run the same command again to load it whole")
        return
    data, count = recipe.data, recipe.num_sampled_answers
    held_out = read_conversations(data.validation_source or (), split=data.validation_split)
    conversations = [
        conversation
        for _, conversation in islice(held_out, max(count, data.max_validation_rows))
        if [message["role"] for message in conversation.messages[-2:]] == ["user", "assistant"]
    ]
    dtype = compute_dtype(recipe.dtype)
    write_samples(
        model, tokenizer, conversations, run.samples, count=count, context_length=recipe.context_length, dtype=dtype
    )


def write_samples(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[Conversation],
    path: Path,
    *,
    count: int,
    context_length: int,
    dtype: torch.dtype,
) -> None:
    """Let the model answer the last question of some conversations, greedily; write its answers beside the known ones.

    The reasons for skipping conversations are logged, and written to the file if none is left.

    Args:
        model: as trained; it answers with its ordinary attention.
        tokenizer: with the chat template it was trained with.
        conversations: held out; those whose question does not fit are skipped.
        path: Markdown file to write.
        count: number of questions to answer.
        context_length: tokens of question and answer; documents are cut in the middle to fit.
        dtype: to compute in, as in training; trained weights are float32, and the others of this type.
    """
    passed_over: Counter[str] = Counter()
    sections: list[str] = []
    room = min(_MAX_NEW_TOKENS, context_length // 4)
    settings = plain_settings(model, tokenizer, max_new_tokens=room)
    model.eval()
    for conversation in conversations:
        if len(sections) == count:
            break
        try:
            prompt = _prompt(tokenizer, conversation, context_length - room)
        except UnusableConversationError as error:
            passed_over[str(error)] += 1
            continue
        tokens = torch.tensor([prompt], device=model.device)  # (1, prompt)
        asked_for = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "generation_config": settings}
        autocast = torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), autocast, plain_generation(model):
            written = model.generate(**asked_for)
        answer = tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True).strip()
        question, known = (message["content"].strip() for message in conversation.messages[-2:])
        asked = (question or "(an empty question)").splitlines()[-1]
        sections.append(f"## {asked}\n\n**The model:** {answer}\n\n**The data:** {known}\n")
        shown = (shortened(text, limit=_SHOWN_CHARACTERS) for text in (asked, answer))
        logger.info("asked: %s\n  answered: %s", *shown)
    reasons = "; ".join(f"{number} conversations {reason}" for reason, number in passed_over.items())
    if sections and reasons:
        logger.info("held-out questions skipped: %s", reasons)
    if not sections:
        reasons = reasons or "none ends with a question and an answer"
        logger.warning("no held-out question was answered: %s", reasons)
        sections = [f"None was answered: {reasons}.\n"]
    write_atomically(path, "\n".join(["# Held-out questions, answered greedily by the trained model\n", *sections]))


def _prompt(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, context_length: int) -> list[int]:
    """Return the tokens before a conversation's last answer, shortened as in training."""
    # The known answer may be long and must not be read; one word in its place shows where an answer begins.
    messages = (*conversation.messages[:-1], {"role": "assistant", "content": "Yes"})
    encoded = encode_conversation(tokenizer, messages, context_length=context_length, tools=conversation.tools)
    labels = encoded.labels
    end = max(index for index, label in enumerate(labels) if label != IGNORED)
    begin = next((index + 1 for index in range(end, -1, -1) if labels[index] == IGNORED), 0)
    return encoded.input_ids[:begin]
