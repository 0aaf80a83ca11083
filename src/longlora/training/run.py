"""The story of a run, from a recipe to an extended model. Read it top to bottom."""

import logging
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from longlora.checkpoint import whole_directory, write_extension
from longlora.config import Recipe
from longlora.data import pack_rows, read_documents, tokenize_documents
from longlora.lora import trainable_parameters
from longlora.model import TrainingModel, load_for_training
from longlora.register import forget_group_size
from longlora.rope import describe_rope
from longlora.training.directory import open_run
from longlora.training.trainer import build_trainer

logger = logging.getLogger("longlora")


def train(recipe: Recipe) -> Path:
    """Follow a recipe to its end and return the directory of what was trained, an adapter or a full model.

    Started again with the same recipe after an interruption, it goes on from the last whole checkpoint and arrives at
    the same losses.

    Raises:
        ConfigError, DataError, CheckpointError: the recipe, the texts or the model cannot be used as they are.
        DivergenceError: the loss stopped being a number.
    """
    run = open_run(recipe)
    checkpoint = run.last_checkpoint()
    set_seed(recipe.seed)

    prepared = load_for_training(recipe)
    _tell_model(recipe, prepared)

    documents = tokenize_documents(
        read_documents(
            recipe.data.source,
            text_column=recipe.data.text_column,
            split=recipe.data.split,
            max_documents=recipe.data.max_documents,
        ),
        prepared.tokenizer,
        cache_dir=recipe.data.cache_dir,
    )
    rows = pack_rows(
        documents,
        context_length=recipe.context_length,
        cross_document_attention=recipe.data.cross_document_attention,
    )
    _tell_rows(recipe, len(rows))

    trainer = build_trainer(recipe, prepared, rows, run)
    if checkpoint:
        logger.info("resuming from %s", checkpoint)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        trainer.progress_bar.close()

    with whole_directory(run.result) as directory:
        save_trained(trainer.accelerator.unwrap_model(trainer.model), prepared, directory)
    return run.result


def save_trained(model: PreTrainedModel | PeftModel, prepared: TrainingModel, directory: Path) -> None:
    """Write the adapter, or the whole model, with its tokenizer and the positions it was trained with."""
    forget_group_size(model)
    if isinstance(model, PeftModel):
        # Embeddings that were trained are in it anyhow; PEFT would add the base's as well where they were resized.
        model.save_pretrained(directory, save_embedding_layers=False)
    else:
        model.save_pretrained(directory)
    prepared.tokenizer.model_max_length = prepared.extension.context_length
    prepared.tokenizer.save_pretrained(directory)
    write_extension(directory, prepared.extension)


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


def _tell_rows(recipe: Recipe, num_rows: int) -> None:
    rows_needed = recipe.max_steps * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    logger.info("%s rows of %s tokens", f"{num_rows:,}", f"{recipe.context_length:,}")
    if rows_needed > num_rows:
        logger.warning(
            "the run takes %s rows and the data has %s: each is seen %.1f times; lower max_steps or add texts",
            f"{rows_needed:,}",
            f"{num_rows:,}",
            rows_needed / num_rows,
        )
