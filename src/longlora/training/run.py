"""The story of a run, from a recipe to an extended model. Read it top to bottom."""

import logging
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase, set_seed
from trl import SFTConfig

from longlora.config import Recipe
from longlora.distributed import (
    end_with_launcher,
    from_main_process,
    is_main_process,
    main_process_first,
    num_processes,
    silence_other_ranks,
    strategy,
    wait_for_all,
)
from longlora.models.generation import make_lasting
from longlora.models.load import TrainingModel, load_for_training
from longlora.models.lora import num_parameters, trainable_parameters
from longlora.rope import describe_rope
from longlora.training.directory import RunDirectory, open_run, run_directory, step_of
from longlora.training.outcome import write_run_summary
from longlora.training.resuming import resumable
from longlora.training.rows import Rows, read_rows
from longlora.training.saving import Trained, gathered, load_trained, save_result
from longlora.training.stopping import Terminated, Termination, noticing_sigterm
from longlora.training.trainer import build_trainer, rows_per_step, training_arguments

logger = logging.getLogger("longlora")


def train(recipe: Recipe, *, merge_follows: bool = False) -> Path:
    """Follow a recipe to its end and return the directory of what was trained, an adapter or a full model.

    Started again with the same recipe after an interruption, it resumes from the last whole checkpoint and arrives at
    the same losses. The result is saved before the run is summed up, which may fail with a warning: started once more,
    it makes what is missing beside the result. In one of several processes it does its part of the run; the main
    process decides and writes.

    Args:
        recipe: the run.
        merge_follows: whether the result is to be merged into `merged/` beside it: a run that lacks only that is then
            returned as it is, and not refused as finished.

    Raises:
        ConfigError, DataError, CheckpointError: the recipe, the texts or the model cannot be used as they are.
        DivergenceError: the loss stopped being a number.
        Terminated: SIGTERM has come, and what was trained is in a checkpoint.
    """
    with ExitStack() as stack:
        termination = stack.enter_context(noticing_sigterm())
        end_with_launcher()
        arguments = training_arguments(recipe, run_directory(recipe))
        silence_other_ranks()

        opened = open_run(recipe, num_processes=num_processes(), strategy=strategy(), merge_follows=merge_follows)
        run = from_main_process(lambda: stack.enter_context(opened))
        checkpoint = from_main_process(run.last_checkpoint)
        if from_main_process(run.result.exists):
            steps = step_of(checkpoint) if checkpoint else recipe.max_steps
            recipe, trained, tokenizer = recipe.model_copy(update={"max_steps": steps}), None, None
        else:
            recipe, trained, tokenizer = _make_result(recipe, run, arguments, termination, checkpoint)
        termination.result_is_saved()
        if is_main_process():
            write_run_summary(recipe, run, trained=trained, tokenizer=tokenizer)
        wait_for_all()
        return run.result


def _make_result(
    recipe: Recipe, run: RunDirectory, arguments: SFTConfig, termination: Termination, checkpoint: Path | None
) -> tuple[Recipe, Trained, PreTrainedTokenizerBase]:
    """Train, and save what was trained; the recipe comes back with its number of steps settled."""
    set_seed(recipe.seed)
    prepared = load_for_training(recipe)
    rows = main_process_first(lambda: read_rows(recipe, prepared.tokenizer, show_progress=is_main_process()))
    recipe = recipe.with_steps_for(len(rows.training), rows_per_step(arguments))
    arguments.max_steps = recipe.max_steps
    make_lasting(prepared.model, prepared.tokenizer)
    _tell_model(recipe, prepared)
    _tell_rows(recipe, len(rows.training), rows_per_step(arguments))
    if checkpoint and step_of(checkpoint) == recipe.max_steps:  # it ended between the last step and the result
        trained = Trained(model=load_trained(prepared, checkpoint) if is_main_process() else prepared.model)
    else:
        trained = _take_steps(recipe, prepared, rows, run, arguments, termination, checkpoint)
    if is_main_process():
        run.remove_former()
    save_result(trained, prepared, run.result)
    return recipe, trained, prepared.tokenizer


def _take_steps(
    recipe: Recipe,
    prepared: TrainingModel,
    rows: Rows,
    run: RunDirectory,
    arguments: SFTConfig,
    termination: Termination,
    checkpoint: Path | None,
) -> Trained:
    trainer = build_trainer(recipe, prepared, rows, run, arguments, termination)
    if checkpoint:
        logger.info("resuming from %s", checkpoint)
        checkpoint = from_main_process(partial(resumable, checkpoint, strategy()))
    arguments.eval_on_start = rows.validation is not None and not checkpoint
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        trainer.progress_bar.close()
    if trainer.stop.has_stopped:
        done = trainer.state.global_step
        raise Terminated(f"the first {done} of {recipe.max_steps} steps are saved" if done else "no step was done")
    return gathered(trainer)


def _tell_model(recipe: Recipe, prepared: TrainingModel) -> None:
    extension = prepared.extension
    counts = trainable_parameters(prepared.model)
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.items() if count and kind != "total")
    logger.info(
        "%s: %s -> %s tokens (rope %s)",
        extension.base_model,
        f"{extension.base_context:,}",
        f"{extension.context_length:,}",
        describe_rope(extension.rope_parameters),
    )
    if recipe.rope.rope_type in ("dynamic", "longrope") and not recipe.data.cross_document_attention:
        logger.warning(
            "rope.rope_type=%s goes by the longest document in a row: short ones do not train the positions that "
            "long texts are read with; use long documents, or data.cross_document_attention: true",
            recipe.rope.rope_type,
        )
    total = num_parameters(prepared.model)
    logger.info("training %s of %s parameters: %s", f"{counts['total']:,}", f"{total:,}", kinds)
    if recipe.attention.pattern == "full":
        logger.info("attention: full")
    else:
        dense_steps = recipe.max_steps - recipe.first_dense_step
        finish = f", full attention in the last {dense_steps} of {recipe.max_steps} steps" if dense_steps else ""
        sinks = f", each seeing the first {recipe.attention.sink_tokens} of its document"
        logger.info(
            "attention: S² with groups of %s tokens%s%s",
            f"{recipe.group_size:,}",
            sinks if recipe.attention.sink_tokens else "",
            finish,
        )


def _tell_rows(recipe: Recipe, num_rows: int, rows_in_step: int) -> None:
    rows_needed = recipe.max_steps * rows_in_step
    most = "up to " if recipe.data.kind == "sft" else ""
    logger.info("%s rows of %s%s tokens", f"{num_rows:,}", most, f"{recipe.context_length:,}")
    if num_processes() > 1:
        logger.info("%s processes (%s), %s rows in an optimizer step", num_processes(), strategy(), f"{rows_in_step:,}")
    if rows_needed > num_rows:
        logger.warning(
            "the run takes %s rows and the data has %s: each is seen %.1f times; lower max_steps or add texts",
            f"{rows_needed:,}",
            f"{num_rows:,}",
            rows_needed / num_rows,
        )
