"""All steps of an import: find the published files, their base and their context, and write the result."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from longlora.errors import CheckpointError, ConfigError
from longlora.models.chat_template import ensure_chat_template
from longlora.models.directories import ADAPTER_CONFIG, Extension, save_tokenizer, write_extension
from longlora.models.load import load_config, load_tokenizer, model_source
from longlora.models.older_keys import write_older_keys
from longlora.models.positions import rotary_parameters, set_positions
from longlora.models.shards import ShardWriter
from longlora.models.skeleton import Skeleton, make_skeleton
from longlora.released.published_folder import Context, Published, find_folder, infer_context, read_folder
from longlora.released.published_weights import (
    alone,
    check_complete,
    check_shapes,
    plain_name,
    read_adapter,
    read_weights,
    write_adapter,
)
from longlora.released.released_models import ReleasedModel, find_released
from longlora.support.files import read_json, whole_directory
from longlora.support.progress import shown

logger = logging.getLogger("longlora")


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """The kind, base and context of an imported model."""

    is_adapter: bool
    base: str  # empty if a full model does not state it
    context: Context


def import_released(
    source: str, output: Path, *, base: str = "", context_length: int | None = None, lora_only: bool = False
) -> ImportReport:
    """Convert the original's published weights to an ordinary adapter or model in `output`.

    LoRA weights become a PEFT adapter that includes embeddings and norms, with `longlora.json` beside it; of the base,
    only configuration and tokenizer are read. A full model becomes safetensors with the positions it was trained with.
    Pickles are read only as tables of tensors.

    Args:
        source: directory or hub name.
        output: directory to create.
        base: the weights' base model, if it is not the one they name, or is stored elsewhere.
        context_length: context in tokens, if nothing else states it.
        lora_only: accept LoRA weights without embeddings and norms.

    Raises:
        CheckpointError: a part is missing, damaged or belongs to another base; or `output` exists.
        ConfigError: base or context cannot be inferred and were not given.
    """
    folder = find_folder(source)
    name = str(folder.resolve()) if Path(source).expanduser().is_dir() else source
    published, known = read_folder(folder), find_released(name)
    is_adapter = published.kind != "model"
    if lora_only and not is_adapter:
        raise ConfigError(f"{source} is a full model; --lora-only is for LoRA weights")
    if is_adapter:
        base = base or _named_base(folder, known)
        config = base_config = load_config(model_source(base))
        if rotary_parameters(config).get("rope_type", "default") != "default":
            raise CheckpointError(f"{base} already has scaled positions; the original starts from a model without them")
    else:
        config = load_config(str(folder))
        # The original never changed `max_position_embeddings` in a configuration.
        base_config = load_config(model_source(base)) if base else config
        base = base or (known.base if known and known.base else "")
    base_context = int(base_config.get_text_config().max_position_embeddings)
    context = infer_context(folder, name, asked=context_length, base_context=base_context)
    adapter = read_adapter(published, make_skeleton(config), base, lora_only=lora_only) if is_adapter else None
    unscaled = {key: value for key, value in rotary_parameters(config).items() if key not in ("type", "factor")}
    scaled = {**unscaled, "rope_type": "linear", "factor": context.factor}
    set_positions(config, rope_parameters=scaled, max_position_embeddings=context.length)
    with whole_directory(output) as directory:
        if adapter:
            write_adapter(*adapter, directory)
        else:
            _write_model(published, config, directory)
        extension = Extension(
            base_model=base or name,
            base_context=base_context,
            context_length=context.length,
            rope_parameters=config.get_text_config().rope_parameters,
        )
        write_extension(directory, extension)
        tokenizer = load_tokenizer(model_source(base) if is_adapter else str(folder))
        tokenizer.model_max_length = context.length
        if known and known.instructed:
            ensure_chat_template(tokenizer)
        save_tokenizer(tokenizer, directory)
    return ImportReport(is_adapter=is_adapter, base=base, context=context)


def _named_base(folder: Path, known: ReleasedModel | None) -> str:
    """Return the listed base, or else the one that LoRA weights state, which may be a local path of the authors."""
    written = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or ""
    if known and known.base:
        return known.base
    if not written or (Path(written).is_absolute() and not Path(written).is_dir()):
        raise ConfigError(
            f"{folder.name} belongs to {written or 'a base it does not state'}, which was not found; give it with "
            "--base, as a directory or a hub name"
        )
    return str(written)


def _write_model(published: Published, config: PreTrainedConfig, directory: Path) -> None:
    """Write weights, file by file, and the configuration, which already has the final positions.

    Raises:
        CheckpointError: weights are missing, damaged, or do not match the configuration.
    """
    skeleton, writer = make_skeleton(config), ShardWriter(directory)
    seen: set[str] = set()
    dtype: torch.dtype | None = None
    several = len(published.files) > 1
    for file in shown(published.files, "converting files", total=len(published.files), show_progress=several):
        weights = {plain_name(name, skeleton): alone(weight) for name, weight in read_weights(file).items()}
        if any(".lora_A." in name for name in weights):
            raise CheckpointError(
                f"{published.folder} contains unmerged LoRA weights, but no adapter_config.json, which states their "
                "scaling; the original's scripts write it when a run is saved"
            )
        if not seen:
            skeleton = _fit_rows(weights, config, skeleton)
        if skeleton.is_tied:
            weights.pop(skeleton.output_embedding, None)
        check_shapes(weights, skeleton.shapes, what="weights", base="config.json")
        dtype = dtype or next((weight.dtype for weight in weights.values() if weight.is_floating_point()), None)
        seen |= weights.keys()
        writer.write(file.name.replace("pytorch_model", "model").replace(".bin", ".safetensors"), weights)
    writer.finish()
    tied = {skeleton.output_embedding} if skeleton.is_tied else set()
    check_complete(seen | tied, skeleton.shapes, what="weights", folder=published.folder)
    config.dtype = dtype
    config.architectures = [type(skeleton.model).__name__]
    config.save_pretrained(directory)
    write_older_keys(directory)
    if (published.folder / GENERATION_CONFIG_NAME).is_file():
        shutil.copy(published.folder / GENERATION_CONFIG_NAME, directory)


def _fit_rows(weights: dict[str, Tensor], config: PreTrainedConfig, skeleton: Skeleton) -> Skeleton:
    """Update vocab_size if the embedding has one row more than the configuration: the original's [PAD]."""
    embedding = weights.get(skeleton.input_embedding)
    if embedding is None or embedding.shape[0] != skeleton.rows + 1:
        return skeleton
    logger.warning(
        "the embedding has %s rows, one more than config.json states: the original's [PAD]; vocab_size was updated",
        f"{embedding.shape[0]:,}",
    )
    config.get_text_config().vocab_size = embedding.shape[0]
    return make_skeleton(config)
