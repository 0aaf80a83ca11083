"""All steps of a run, from a recipe to an extended model. Read it top to bottom."""

import logging
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from transformers import set_seed
from trl import SFTConfig

from longlora.config import Recipe
from longlora.distributed import (
    current_strategy,
    end_with_launcher,
    from_main_process,
    is_main_process,
    main_process_first,
    num_processes,
    silence_other_ranks,
    wait_for_everyone,
)
from longlora.models.generation import make_lasting
from longlora.models.load import load_for_training
from longlora.support.files import output_to
from longlora.training.announcements import tell_model, tell_rows
from longlora.training.callbacks import Sigterm, Terminated, noticing_sigterm
from longlora.training.checkpoints import Trained, load_trained, resumable, save_result
from longlora.training.lost_processes import noticing_lost_processes
from longlora.training.recipe_rows import read_rows
from longlora.training.run_directory import RunDirectory, keep_to_data, open_run, step_of
from longlora.training.run_summary import write_run_summary
from longlora.training.trainer import build_trainer, rows_per_step, training_arguments

logger = logging.getLogger("longlora")


def train(recipe: Recipe, *, merge_follows: bool = False) -> Path:
    """Train a recipe and return the directory of the result, an adapter or a full model.

    Called again with the same recipe after an interruption, it resumes from the last complete checkpoint and reaches
    the same losses. The result is saved before the run's summary, which may fail with a warning; another call creates
    what is missing. With several processes, each one calls it; the main process decides and writes.

    Args:
        recipe: the run's settings.
        merge_follows: whether the result will be merged into `merged/` beside it: a run that lacks only that is then
            returned instead of being refused as finished.

    Raises:
        ConfigError, DataError, CheckpointError: the recipe, the texts or the model cannot be used.
        DivergenceError: the loss became infinite or NaN.
        LostProcessError: another process is gone.
        Terminated: SIGTERM was received, and the trained state is in a checkpoint.
    """
    with noticing_sigterm() as sigterm, ExitStack() as stack:
        end_with_launcher()
        arguments = training_arguments(recipe)  # joins the other processes
        silence_other_ranks()
        stack.enter_context(noticing_lost_processes())

        opened = open_run(
            recipe, num_processes=num_processes(), strategy=current_strategy(), merge_follows=merge_follows
        )
        run = from_main_process(lambda: stack.enter_context(opened))
        trained = None
        if not from_main_process(run.result.exists):
            trained = _train_and_save(recipe, run, arguments, sigterm)

        sigterm.result_is_saved()
        if is_main_process():
            write_run_summary(recipe, run, trained)
        wait_for_everyone()
        return run.result


def _train_and_save(recipe: Recipe, run: RunDirectory, arguments: SFTConfig, sigterm: Sigterm) -> Trained:
    """Train from the beginning or from the last checkpoint, and save the result."""
    checkpoint = run.resumes_from
    set_seed(recipe.seed)
    prepared = load_for_training(recipe, is_divided_later=current_strategy() == "fsdp2")
    rows = main_process_first(lambda: read_rows(recipe, prepared.tokenizer, show_progress=is_main_process()))
    from_main_process(lambda: keep_to_data(run, rows.identity()))
    recipe = recipe.with_steps_for(len(rows.training), rows_per_step(recipe, arguments))
    arguments.max_steps = recipe.max_steps
    make_lasting(prepared.model, prepared.tokenizer)
    tell_model(recipe, prepared)
    tell_rows(recipe, len(rows.training), rows_per_step(recipe, arguments))

    if checkpoint and step_of(checkpoint) == recipe.max_steps:  # interrupted between the last step and the result
        model = load_trained(prepared, checkpoint) if is_main_process() else prepared.model
        trained = Trained(model=model, tokenizer=prepared.tokenizer)
    else:
        trainer = build_trainer(recipe, prepared, rows, run, arguments, sigterm)
        if checkpoint:
            logger.info("resuming from %s", checkpoint)
            checkpoint = from_main_process(partial(resumable, checkpoint, current_strategy()))
        arguments.eval_on_start = rows.validation is not None and not checkpoint
        with closing(trainer.progress_bar), output_to(run.checkpoints):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if sigterm.has_stopped:
            done = trainer.state.global_step
            raise Terminated(f"the first {done} of {recipe.max_steps} steps are saved" if done else "no step finished")
        trained = Trained(
            model=trainer.accelerator.unwrap_model(trainer.model),
            tokenizer=prepared.tokenizer,
            weights=trainer.gathered_weights(),
            measured=trainer.progress_bar,
        )
    if is_main_process():
        run.remove_former()
        save_result(trained, prepared.extension, run.result)
    wait_for_everyone()
    return trained
