"""The story of an import: what is there, what it belongs to, how far it reads, and what is written."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from longlora.errors import CheckpointError, ConfigError
from longlora.models.chat_template import ensure_chat_template
from longlora.models.checkpoint import Extension, save_tokenizer, write_extension
from longlora.models.load import load_config, load_tokenizer, model_source
from longlora.models.positions import rotary_parameters, set_positions, write_older_keys
from longlora.released.adapter import Parts, read_parts, write_adapter
from longlora.released.context import Context, infer_context
from longlora.released.model import convert_model
from longlora.released.published import ADAPTER_CONFIG, Published, find_folder, read_folder, read_json
from longlora.released.skeleton import make_skeleton
from longlora.released.table import ReleasedModel, find_released
from longlora.support.files import whole_directory

logger = logging.getLogger("longlora")


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What was imported."""

    is_adapter: bool
    base: str
    """Model it was made of; empty where a full model does not tell."""

    context: Context


def import_released(
    source: str, output: Path, *, base: str = "", context_length: int | None = None, lora_only: bool = False
) -> ImportReport:
    """Turn published weights of the original into an adapter or a model of the usual kind, in `output`.

    LoRA weights become a PEFT adapter with embeddings and norms in it and `longlora.json` beside it; of the base only
    configuration and tokenizer are read. A full model becomes safetensors with the positions it was trained with.
    Pickles are read as tables of tensors and nothing else.

    Args:
        source: directory, or name on the hub.
        output: directory to be made.
        base: model that the weights belong to, where it is not the one they name, or lies elsewhere.
        context_length: tokens that it reads, where nothing tells.
        lora_only: take LoRA weights without embeddings and norms.

    Raises:
        CheckpointError: a part is missing, damaged or belongs to another base; or `output` exists.
        ConfigError: base or context cannot be inferred and were not given.
    """
    folder = find_folder(source)
    name = str(folder.resolve()) if Path(source).expanduser().is_dir() else source
    published = read_folder(folder)
    known = find_released(name)
    if published.kind == "model":
        if lora_only:
            raise ConfigError(f"{source} is a full model; --lora-only is for LoRA weights")
        return _import_model(published, name, known, output, base=base, context_length=context_length)
    base = base or _named_base(folder, known)
    config = load_config(model_source(base))
    base_context = _base_context(config, base)
    context = infer_context(folder, name, asked=context_length, base_context=base_context)
    parts = read_parts(published, make_skeleton(config), base, lora_only=lora_only)
    with whole_directory(output) as directory:
        _write_adapter(
            parts, config, base, context, base_context, directory, instructed=bool(known and known.instructed)
        )
    return ImportReport(is_adapter=True, base=base, context=context)


def _import_model(
    published: Published,
    name: str,
    known: ReleasedModel | None,
    output: Path,
    *,
    base: str,
    context_length: int | None,
) -> ImportReport:
    config = load_config(str(published.folder))
    # The original never changed the number of positions that a configuration says.
    base_config = load_config(model_source(base)) if base else config
    base = base or (known.base if known and known.base else "")
    base_context = int(base_config.get_text_config().max_position_embeddings)
    context = infer_context(published.folder, name, asked=context_length, base_context=base_context)
    set_positions(config, rope_parameters=_scaled(config, context.factor), max_position_embeddings=context.length)
    with whole_directory(output) as directory:
        convert_model(published, config, directory)
        write_older_keys(directory)
        tokenizer = load_tokenizer(str(published.folder))
        tokenizer.model_max_length = context.length
        if known and known.instructed:
            ensure_chat_template(tokenizer)
        save_tokenizer(tokenizer, directory)
        if (published.folder / "generation_config.json").is_file():
            shutil.copy(published.folder / "generation_config.json", directory)
        write_extension(directory, _extension(base or name, base_context, context, config))
    return ImportReport(is_adapter=False, base=base, context=context)


def _named_base(folder: Path, known: ReleasedModel | None) -> str:
    """The model that LoRA weights say they belong to; the authors' own machines had it in folders."""
    written = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or ""
    if known and known.base:
        return known.base
    if not written or (Path(written).is_absolute() and not Path(written).is_dir()):
        raise ConfigError(
            f"{folder.name} belongs to {written or 'a model it does not name'}, which is not here; say with --base "
            "which model that is, as a directory or a name on the hub"
        )
    return str(written)


def _base_context(config: PreTrainedConfig, base: str) -> int:
    if rotary_parameters(config).get("rope_type", "default") != "default":
        raise CheckpointError(f"{base} has scaled positions already; the original begins with a model that has none")
    return int(config.get_text_config().max_position_embeddings)


def _write_adapter(
    parts: Parts,
    config: PreTrainedConfig,
    base: str,
    context: Context,
    base_context: int,
    directory: Path,
    *,
    instructed: bool,
) -> None:
    write_adapter(parts, directory)
    set_positions(config, rope_parameters=_scaled(config, context.factor), max_position_embeddings=context.length)
    write_extension(directory, _extension(base, base_context, context, config))
    tokenizer = load_tokenizer(model_source(base))
    tokenizer.model_max_length = context.length
    if instructed:
        ensure_chat_template(tokenizer)
    save_tokenizer(tokenizer, directory)


def _scaled(config: PreTrainedConfig, factor: float) -> dict[str, object]:
    kept = {key: value for key, value in rotary_parameters(config).items() if key not in ("type", "factor")}
    return {**kept, "rope_type": "linear", "factor": factor}


def _extension(base: str, base_context: int, context: Context, config: PreTrainedConfig) -> Extension:
    return Extension(
        base_model=base,
        base_context=base_context,
        context_length=context.length,
        rope_parameters=config.get_text_config().rope_parameters,
    )
