"""What can be checked of a recipe before torch is loaded: its paths, and the values that a plan needs."""

from typing import Any

from longlora.config import Recipe
from longlora.errors import ConfigError
from longlora.models.directories import training_source
from longlora.planner.architecture import Architecture, find_architecture
from longlora.planner.job import PlannedRun, check_position_split
from longlora.rope.extend import extend_rope, present_context
from longlora.support.choices import Strategy
from longlora.support.locate import locate
from longlora.training.run_directory import check_output

# The planner's names for the optimizers of a recipe whose memory it knows.
_PLANNED_OPTIMIZERS: dict[str, Any] = {
    "adamw_torch_fused": "adamw",
    "adamw_torch": "adamw_foreach",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


def check_places(recipe: Recipe, *, merge_follows: bool) -> None:
    """Check the paths that a recipe names: the output directory (`check_output`), the model, the data.

    Raises:
        ConfigError: the output directory cannot be used, or the model is an adapter.
        CheckpointError: there is no model at the given path.
        DataError: there are no texts at the given path.
    """
    check_output(recipe, merge_follows=merge_follows)
    training_source(recipe.model_name_or_path)
    for source in (recipe.data.source, recipe.data.validation_source):
        for name in [source] if isinstance(source, str) else source or ():
            locate(name)


def planned_run(recipe: Recipe, *, num_gpus: int = 1, strategy: Strategy = "single") -> PlannedRun:
    """Convert a recipe into the plain values that a plan needs.

    If the number of steps depends on the data (`num_train_epochs`), the plan is for one step.

    Raises:
        ConfigError: the model's architecture or the optimizer's memory is unknown, S²-Attn reaches no layer of the
            model, its heads or positions cannot be divided, its positions cannot be extended as the recipe asks, or it
            has no layer of a name in `lora.target_modules`.
    """
    if recipe.optim not in _PLANNED_OPTIMIZERS:
        raise ConfigError(
            f"the memory of optim={recipe.optim} is not known here; plan with one of {', '.join(_PLANNED_OPTIMIZERS)}"
        )
    targets = recipe.lora.target_modules
    training_source(recipe.model_name_or_path)
    architecture = find_architecture(recipe.model_name_or_path)
    _check_targets(recipe, architecture)
    if recipe.attention.pattern == "s2" and architecture.num_sliding_layers == architecture.num_layers:
        raise ConfigError(
            f"each layer of {architecture.name} has its own window ({architecture.sliding_window:,} tokens), so "
            "S²-Attn cannot train it and the model would not read further; set sliding_window to null in its "
            "config.json"
        )
    positions, reach = architecture.rope_parameters, architecture.max_position_embeddings
    if not recipe.keeps_positions(present_context(positions, reach)):  # fails now if they cannot be extended
        positions = extend_rope(
            positions,
            max_position_embeddings=reach,
            context_length=recipe.context_length,
            head_dim=architecture.head_dim,
            rope_type=recipe.rope.rope_type,
            base_context=recipe.rope.base_context,
            options=recipe.rope.options,
        ).rope_parameters
    check_position_split(recipe.sequence_parallel_size, positions)
    same = "context_length tuning gradient_checkpointing chunked_loss tiled_mlp sequence_parallel_size".split()
    same_in_attention = "shift sink_tokens dense_finish full_attention_interval".split()
    return PlannedRun(
        **{name: getattr(recipe, name) for name in same},
        **{name: getattr(recipe.attention, name) for name in same_in_attention},
        architecture=architecture,
        lora_rank=recipe.lora.r,
        # A list of names takes no more memory than all linear layers.
        lora_targets=targets if isinstance(targets, str) else "all-linear",
        train_embeddings="embed" in recipe.trainable,
        train_norms="norm" in recipe.trainable,
        dtype="bfloat16" if recipe.dtype == "auto" else recipe.dtype,
        offload_checkpoints=recipe.activation_offloading,
        four_bit=recipe.quantization == "nf4",
        optimizer=_PLANNED_OPTIMIZERS[recipe.optim],
        attention=recipe.attention.pattern,
        group_size=recipe.group_size if recipe.attention.pattern == "s2" else None,
        batch_size=recipe.per_device_train_batch_size,
        accumulation_steps=recipe.gradient_accumulation_steps,
        steps=recipe.max_steps if recipe.num_train_epochs is None else 1,
        num_gpus=num_gpus,
        strategy=strategy,
    )


def _check_targets(recipe: Recipe, architecture: Architecture) -> None:
    """Check the last part of each name of a layer in `lora.target_modules`."""
    targets, known = recipe.lora.target_modules, architecture.linear_names
    if recipe.tuning == "full" or isinstance(targets, str):
        return
    for last in (name.rpartition(".")[2] for name in targets):
        if last == "lm_head":
            raise ConfigError(
                f"lora.target_modules: {last!r} is the output layer, which takes no low-rank update; leave it out"
            )
        if last not in known:
            raise ConfigError(
                f"lora.target_modules: {last!r} names no linear layer of {architecture.name}; its linear layers are "
                f"{', '.join(known)}"
            )
