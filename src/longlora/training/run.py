"""The story of a run, from a recipe to an extended model. Read it top to bottom."""

import logging
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from datasets import Dataset
from transformers import set_seed

from longlora.checkpoint import whole_directory
from longlora.config import Recipe
from longlora.data import pack_rows, read_documents, tokenize_documents
from longlora.lora import trainable_parameters
from longlora.model import TrainingModel, load_for_training
from longlora.rope import describe_rope
from longlora.training.directory import open_run, run_directory, step_of
from longlora.training.engines import engine
from longlora.training.processes import (
    end_with_launcher,
    first_then_others,
    from_first,
    hush_others,
    is_first,
    num_processes,
    wait_for_all,
)
from longlora.training.resuming import resumable
from longlora.training.saving import load_trained, save_result, save_trained
from longlora.training.stopping import Terminated, noticing_sigterm
from longlora.training.trainer import build_trainer, rows_per_step, training_arguments

logger = logging.getLogger("longlora")


def train(recipe: Recipe) -> Path:
    """Follow a recipe to its end and return the directory of what was trained, an adapter or a full model.

    Started again with the same recipe after an interruption, it goes on from the last whole checkpoint and arrives at
    the same losses. In one of several processes it does its part of the run; the first of them decides and writes.

    Raises:
        ConfigError, DataError, CheckpointError: the recipe, the texts or the model cannot be used as they are.
        DivergenceError: the loss stopped being a number.
        Terminated: SIGTERM has come, and what was trained is in a checkpoint.
    """
    with ExitStack() as stack:
        termination = stack.enter_context(noticing_sigterm())
        end_with_launcher()
        arguments = training_arguments(recipe, run_directory(recipe))
        hush_others()

        opened = open_run(recipe, num_processes=num_processes(), engine=engine())
        run = from_first(lambda: stack.enter_context(opened))
        checkpoint = from_first(run.last_checkpoint)
        set_seed(recipe.seed)

        prepared = load_for_training(recipe)
        _tell_model(recipe, prepared)
        if checkpoint and step_of(checkpoint) == recipe.max_steps:  # it ended between the last step and the result
            if is_first():
                with whole_directory(run.result) as directory:
                    save_trained(load_trained(prepared, checkpoint), prepared, directory)
            wait_for_all()
            return run.result

        rows = first_then_others(lambda: _read_rows(recipe, prepared))
        _tell_rows(recipe, len(rows), rows_per_step(arguments))

        trainer = build_trainer(recipe, prepared, rows, run, arguments, termination)
        if checkpoint:
            logger.info("resuming from %s", checkpoint)
            checkpoint = from_first(partial(resumable, checkpoint, engine()))
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            trainer.progress_bar.close()
        if trainer.stop.has_stopped:
            done = trainer.state.global_step
            raise Terminated(f"the first {done} of {recipe.max_steps} steps are saved" if done else "no step was done")

        save_result(trainer, prepared, run.result)
        return run.result


def _read_rows(recipe: Recipe, prepared: TrainingModel) -> Dataset:
    documents = tokenize_documents(
        read_documents(
            recipe.data.source,
            text_column=recipe.data.text_column,
            split=recipe.data.split,
            max_documents=recipe.data.max_documents,
        ),
        prepared.tokenizer,
        cache_dir=recipe.data.cache_dir,
        show_progress=is_first(),
    )
    return pack_rows(
        documents,
        context_length=recipe.context_length,
        cross_document_attention=recipe.data.cross_document_attention,
    )


def _tell_model(recipe: Recipe, prepared: TrainingModel) -> None:
    extension = prepared.extension
    counts = trainable_parameters(prepared.model)
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.items() if count and kind != "total")
    total = sum(parameter.numel() for parameter in prepared.model.parameters())
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
    logger.info("training %s of %s parameters: %s", f"{counts['total']:,}", f"{total:,}", kinds)
    if recipe.attention.pattern == "full":
        logger.info("attention: full")
    else:
        dense_steps = recipe.max_steps - recipe.first_dense_step
        finish = f", full attention in the last {dense_steps} of {recipe.max_steps} steps" if dense_steps else ""
        logger.info("attention: S² with groups of %s tokens%s", f"{recipe.group_size:,}", finish)


def _tell_rows(recipe: Recipe, num_rows: int, rows_in_step: int) -> None:
    rows_needed = recipe.max_steps * rows_in_step
    logger.info("%s rows of %s tokens", f"{num_rows:,}", f"{recipe.context_length:,}")
    if num_processes() > 1:
        logger.info("%s processes (%s), %s rows in an optimizer step", num_processes(), engine(), f"{rows_in_step:,}")
    if rows_needed > num_rows:
        logger.warning(
            "the run takes %s rows and the data has %s: each is seen %.1f times; lower max_steps or add texts",
            f"{rows_needed:,}",
            f"{num_rows:,}",
            rows_needed / num_rows,
        )
