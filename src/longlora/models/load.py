"""Load checkpoints as models: the only place that does, for training, evaluation and merging."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import enable_fsdp_ram_efficient_loading
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from longlora.config import Recipe
from longlora.config.optimizers import PACKAGES
from longlora.errors import CheckpointError, ConfigError, first_line
from longlora.models.chat_template import check_template_ends
from longlora.models.compat import keep_to_fitting_kernels, ordinary_attention
from longlora.models.directories import (
    ADAPTER_WEIGHTS,
    Extension,
    base_model_of,
    is_adapter,
    model_source,
    read_extension,
    training_source,
)
from longlora.models.generation import stop_at_every_end
from longlora.models.grouping import Grouping, set_grouping
from longlora.models.lora import add_adapter
from longlora.models.memory_optimizations import keep_hidden_states_in, nf4_arguments, tile_feed_forward
from longlora.models.positions import (
    extend_positions,
    readable_context,
    rotary_parameters,
    set_positions,
    without_older_names,
)
from longlora.models.probe import check_s2_reaches
from longlora.models.shards import check_indexes, opened
from longlora.models.vocabulary import check_rows, fit_vocabulary
from longlora.rope.extend import RopeExtension
from longlora.support.choices import DtypeName, Quantization
from longlora.support.machine import require_package
from longlora.support.whole import check_whole

logger = logging.getLogger("longlora")

DeviceMap = str | dict[str, str | int]


@dataclass(frozen=True, kw_only=True)
class TrainingModel:
    """A model ready to train, with its tokenizer and extension."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    extension: Extension


def load_for_training(recipe: Recipe, *, is_divided_later: bool = False) -> TrainingModel:
    """Load the recipe's model with new positions, the attention for training, and its trainable parameters set up.

    With `is_divided_later`, as under FSDP2, the main process alone reads the weights, to hand out their parts.

    Raises:
        ConfigError: the model cannot be extended or trained as the recipe says, or a required package is missing.
        CheckpointError: the model is missing, incomplete or damaged.
    """
    require_package(PACKAGES[recipe.optim], wanted_by=f"optim={recipe.optim}")
    name = training_source(recipe.model_name_or_path)
    config = load_config(name, trust_remote_code=recipe.trust_remote_code)
    extension = extended_config(config, recipe)
    attention = _training_attention(config, recipe)
    if is_divided_later and not (recipe.quantization or config.get_text_config().tie_word_embeddings):
        # Embeddings would be tied again by accelerate 1.15, which PEFT's wrapper around trained ones refuses.
        enable_fsdp_ram_efficient_loading()
    dtype = compute_dtype(recipe.dtype)
    # Full fine-tuning, like the adapter, keeps float32 master weights and computes in `dtype` under autocast.
    weights_dtype = torch.float32 if recipe.tuning == "full" else dtype
    model = load_weights(
        name,
        config,
        dtype=weights_dtype,
        attention=attention,
        trust_remote_code=recipe.trust_remote_code,
        quantization=nf4_arguments(dtype) if recipe.quantization else None,
    )
    if recipe.quantization:
        keep_to_fitting_kernels(model, trains=True)
    set_grouping(model, training_grouping(recipe))
    tokenizer = load_tokenizer(name)
    rows = model.get_input_embeddings().num_embeddings
    fit_vocabulary(model, tokenizer, new_tokens=recipe.new_tokens)
    if model.get_input_embeddings().num_embeddings != rows:
        extension = replace(extension, vocabulary_rows=model.get_input_embeddings().num_embeddings)
    if recipe.tuning != "full":
        model = add_adapter(
            model,
            trainable=recipe.trainable,
            train_output=bool(recipe.new_tokens),
            **recipe.lora.model_dump(mode="python", exclude={"trainable"}),
        )
    keep_hidden_states_in(model, dtype)
    if recipe.tiled_mlp:
        tile_feed_forward(model, num_tokens=recipe.tiled_mlp)
    return TrainingModel(model=model, tokenizer=tokenizer, extension=extension)


def load_for_inference(
    name_or_path: str | Path,
    *,
    dtype: DtypeName = "auto",
    device: str | None = None,
    device_map: DeviceMap | None = None,
    quantization: Quantization | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a model, or an adapter with its base, for evaluation or generation with its ordinary attention.

    A longlora adapter includes its positions; any other PEFT adapter is applied to its base unchanged. With
    `device_map`, as in transformers ("auto", or a device for each part), the model is spread over several GPUs and
    CPU memory instead of one `device`. With `quantization`, linear layers are loaded in 4 bits, on the first GPU if
    there is one.

    Raises:
        CheckpointError: the model is missing, incomplete or damaged.
        ConfigError: two of `device`, `device_map` and `quantization` are given, the base of an adapter does not fit
            onto the devices, or the package for quantization is not installed.
    """
    places = {"device": device, "device_map": device_map, "quantization": quantization}
    given = {name: value for name, value in places.items() if value is not None}
    if len(given) > 1:
        wishes = " and ".join(f"{name}={value}" for name, value in given.items())
        raise ConfigError(f"{wishes} each determine where the model goes: give only one of them")
    name = tokenizer_source = model_source(str(name_or_path))
    packing = nf4_arguments(compute_dtype(dtype)) if quantization else None
    how: dict[str, Any] = {"dtype": compute_dtype(dtype), "trust_remote_code": trust_remote_code}
    how |= {"device_map": device_map, "quantization": packing}
    if is_adapter(Path(name)):
        model = load_adapter(Path(name), **how)
        if not (Path(name) / "tokenizer_config.json").exists():
            tokenizer_source = model.config.name_or_path
    else:
        model = load_weights(name, load_config(name, trust_remote_code=trust_remote_code), **how)
    if packing:
        keep_to_fitting_kernels(model, trains=False)
    elif device_map is None:  # otherwise the weights are already in place
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = load_tokenizer(tokenizer_source)
    stop_at_every_end(model, tokenizer)
    return model.eval(), tokenizer


def load_adapter(
    directory: Path,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    device_map: DeviceMap | None = None,
    quantization: dict[str, Any] | None = None,
) -> PeftModel:
    """Load an adapter on top of its base, on the CPU or where `device_map` or `quantization` places it.

    Raises:
        CheckpointError: the adapter or its base is missing, incomplete or damaged.
        ConfigError: the base does not fit onto the devices of `device_map`.
    """
    check_whole(directory)
    extension, base = read_extension(directory), model_source(base_model_of(directory))
    config = load_config(base, trust_remote_code=trust_remote_code)
    if extension:
        apply_extension(config, extension)
    model = load_weights(
        base, config, dtype=dtype, trust_remote_code=trust_remote_code, device_map=device_map, quantization=quantization
    )
    if any(parameter.is_meta for parameter in model.parameters()):
        # PEFT 0.21 would leave out the adapter's weights for those parts, with only a warning.
        raise ConfigError(
            f"parts of {base} do not fit on the devices and are offloaded, where no adapter can be applied to them: "
            "merge the adapter (`longlora merge`) and load the merged model, or provide more memory"
        )
    if extension and extension.vocabulary_rows:
        # The adapter contains every row of the resized embeddings, so the initial values do not matter.
        model.resize_token_embeddings(extension.vocabulary_rows, mean_resizing=False)
    _check_rows(directory, model, base)
    try:
        return PeftModel.from_pretrained(model, directory)
    except Exception as error:  # safetensors, PEFT and torch each raise their own exceptions for a bad file
        raise CheckpointError(f"the adapter in {directory} cannot be loaded: {first_line(error)}") from error


def _check_rows(directory: Path, model: PreTrainedModel, base: str) -> None:
    """Check that an adapter's embeddings have as many rows as the base's, before torch fails less clearly."""
    if not (directory / ADAPTER_WEIGHTS).is_file():
        return
    with opened(directory / ADAPTER_WEIGHTS) as tensors:
        names = set(tensors.keys())
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            for name in (name for name, module in model.named_modules() if module is embedding):
                if (tensor := f"base_model.model.{name}.weight") in names:
                    found = tensors.get_slice(tensor).get_shape()[0]
                    check_rows(directory, found=found, rows=embedding.weight.shape[0], base=base)


def load_config(name: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load a model's configuration.

    Raises:
        CheckpointError: it cannot be found or read.
    """
    try:
        return without_older_names(AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code))
    except Exception as error:  # transformers has no specific exception for invalid values
        raise CheckpointError(
            f"cannot load the configuration of {name!r}, neither from a directory of that name nor from the hub: "
            f"{first_line(error)}"
        ) from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    Raises:
        CheckpointError: it cannot be found or read, or its chat template does not terminate.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # tokenizers has no specific exception for a bad file
        raise CheckpointError(f"cannot load the tokenizer of {name!r}: {first_line(error)}") from error
    check_template_ends(tokenizer, name)
    return tokenizer


def load_weights(
    name: str,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype,
    attention: str | None = None,
    trust_remote_code: bool = False,
    quantization: dict[str, Any] | None = None,
    device_map: DeviceMap | None = None,
) -> PreTrainedModel:
    """Load a model's weights with a given configuration, on the CPU; `attention=None` is the model's own choice.

    With `quantization`, as returned by `nf4_arguments`, they are loaded directly on the device that computes, and with
    `device_map` where it specifies.

    Raises:
        CheckpointError: a file is missing or truncated, lacks weights, or was changed since longlora wrote it.
    """
    check_whole(Path(name))
    check_indexes(Path(name))
    placement = (quantization or {}) | ({"device_map": device_map} if device_map else {})
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=dtype,
            attn_implementation=attention or ordinary_attention(config),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **placement,
        )
    except Exception as error:  # safetensors, torch and transformers each raise their own exceptions for a bad file
        raise CheckpointError(f"cannot load the weights of {name!r}: {first_line(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"{name!r} is incomplete: {len(missing)} weights are missing, the first is {missing[0]}; download it again"
        )
    return model


def extended_config(config: PreTrainedConfig, recipe: Recipe) -> Extension:
    """Write the recipe's positions into a configuration, in place, and return what changed.

    Fine-tuning on conversations may stay within the model's context; its positions are then kept.

    Raises:
        ConfigError: the model already has this context, or its positions cannot be scaled in this way.
    """
    if recipe.keeps_positions(readable_context(config)):
        context = recipe.rope.base_context or readable_context(config)
        rope = RopeExtension(
            base_context=context,
            context_length=context,
            rope_parameters=rotary_parameters(config),
            max_position_embeddings=config.get_text_config().max_position_embeddings,
        )
    else:
        rope = extend_positions(
            config,
            context_length=recipe.context_length,
            rope_type=recipe.rope.rope_type,
            base_context=recipe.rope.base_context,
            options=recipe.rope.options,
        )
    return Extension(base_model=recipe.model_name_or_path, quantization=recipe.quantization, **vars(rope))


def apply_extension(config: PreTrainedConfig, extension: Extension) -> None:
    """Write an extension's positions into a configuration, in place."""
    set_positions(
        config,
        rope_parameters=extension.rope_parameters,
        max_position_embeddings=extension.max_position_embeddings or extension.context_length,
    )


def compute_dtype(name: DtypeName) -> torch.dtype:
    """Resolve a dtype's name; `auto` is bfloat16 if the device supports it, else float32."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


def training_grouping(recipe: Recipe) -> Grouping:
    """Return the grouping for the steps before a dense finish."""
    if (attention := recipe.attention).pattern == "full":
        return Grouping(group_size=None)
    return Grouping(
        group_size=recipe.group_size,
        shift=attention.shift,
        sink_tokens=attention.sink_tokens,
        full_attention_interval=attention.full_attention_interval,
    )


def _training_attention(config: PreTrainedConfig, recipe: Recipe) -> str | None:
    """Return the attention to train with: "s2", which also supports full attention within documents without a mask."""
    text_config = config.get_text_config()
    if dropout := text_config.to_dict().get("attention_dropout"):  # the kernels have none
        logger.warning(
            "attention_dropout=%s in the model's config is set to 0: S²-Attn has no attention dropout", dropout
        )
        text_config.attention_dropout = 0.0
    try:
        check_s2_reaches(config)
    except ConfigError:
        if recipe.attention.pattern == "s2":
            raise
        return None
    return "s2"
