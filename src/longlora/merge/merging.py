"""All steps of a merge: find the changes, write the files, compare the result with the adapter, upload it."""

import gc
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from longlora.errors import CheckpointError, ConfigError, first_line
from longlora.merge.card import write_card
from longlora.merge.changes import ShardMergeUnsupported, find_changes
from longlora.merge.streaming import ShardMerge
from longlora.models.compat import ordinary_attention
from longlora.models.directories import ADAPTER_WEIGHTS, base_model_of, check_adapter, read_extension, save_tokenizer
from longlora.models.generation import lasting_settings, saved_settings
from longlora.models.load import apply_extension, load_adapter, load_config, load_tokenizer, model_source
from longlora.models.older_keys import write_older_keys
from longlora.models.shards import main_dtype, model_folder, opened, stored_weights
from longlora.support.choices import DtypeName
from longlora.support.files import whole_directory
from longlora.support.whole import check_whole

logger = logging.getLogger("longlora")

_PROBE_TOKENS = 512
# Root mean square of the differences, relative to that of the logits, that rounding the merged weights can cause. The
# maximum of a million differences is not informative: in 16 bits there is always an outlier.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """The type of a merged model, and how much its logits, once loaded from disk, differ from the adapter's."""

    dtype: torch.dtype  # of most of the merged weights
    probe_tokens: int = 0  # random tokens of the vocabulary; 0 and NaN if nothing was compared
    largest_difference: float = math.nan  # absolute, of any logit
    largest_logit: float = math.nan  # absolute, of the adapter, for comparison
    relative_difference: float = math.nan  # root mean square of the differences over that of the adapter's logits


def merge_adapter(
    adapter: Path, output: Path, *, dtype: DtypeName = "auto", older_readers: bool | None = None, check: bool = True
) -> MergeReport:
    """Merge an adapter into its base and write the model to `output`, which appears only when complete and checked.

    The base's safetensors files are read, changed and written one after another, each low-rank update computed in
    float32 and rounded once. Memory is one file and its result, for any model size. If an adapter or a base does not
    allow this, PEFT merges the whole model in memory, and a message gives the reason.

    The check loads the adapter with its base, then the merged model with plain transformers, one model at a time. The
    configuration contains the extended positions, also in the keys of transformers 4 (`rope_theta`, `rope_scaling`) for
    other readers. A warning lists each reader that would misread them.

    An adapter trained on a 4-bit base is merged into the original base, because dequantized weights would make the
    quantization error permanent. The result differs from the trained model by that error; a warning is logged.

    Args:
        adapter: adapter directory, from longlora or PEFT.
        output: directory to create.
        dtype: type of the merged weights; `auto` keeps each weight's type in the base.
        older_readers: True refuses positions that the keys of transformers 4 cannot express, False omits these keys;
            None writes them if possible.
        check: compare logits before `output` appears.

    Raises:
        CheckpointError: `adapter` is not an adapter or is damaged, `output` exists, the disk is full, or the merged
            model does not match the adapter.
        ConfigError: `older_readers` is True, and the keys of transformers 4 cannot express the model's positions.
    """
    check_adapter(adapter)
    check_whole(adapter)
    extension = read_extension(adapter)
    if extension and extension.quantization:
        logger.warning(
            "%s was trained on a base quantized to %s and is merged into the original base: evaluate the merged model",
            *(adapter, extension.quantization),
        )
    try:
        peft_config = PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"the configuration of the adapter in {adapter} cannot be read: {error}") from error
    base = model_source(base_model_of(adapter))
    check_whole(Path(base))
    config = load_config(base)
    if extension:
        apply_extension(config, extension)
        if extension.vocabulary_rows:
            config.get_text_config().vocab_size = extension.vocabulary_rows
    with whole_directory(output) as directory:
        try:
            written = _merge_by_shard(adapter, peft_config, base, config, directory, dtype)
        except ShardMergeUnsupported as reason:
            logger.warning("merging the whole model in memory, since it is not possible file by file: %s", reason)
            written = _merge_in_memory(adapter, config, directory, dtype)
        _write_rest(adapter, base, config, directory)
        write_card(directory, adapter=adapter, base=base, extension=extension)
        if older_readers is not False:
            write_older_keys(directory, required=bool(older_readers))
        compared = _compare(adapter, directory, written) if check else {}
        return MergeReport(dtype=written, **compared)


def _merge_by_shard(
    adapter: Path, peft_config: PeftConfig, base: str, config: PreTrainedConfig, directory: Path, dtype: DtypeName
) -> torch.dtype:
    """Write configuration and weights, and return the weights' type."""
    folder = model_folder(base)
    if folder is None:
        raise ShardMergeUnsupported(f"{base} has no safetensors")
    if getattr(config, "quantization_config", None):
        raise ShardMergeUnsupported(f"{base} is quantized")
    if not (adapter / ADAPTER_WEIGHTS).exists():
        raise ShardMergeUnsupported(f"{adapter} has no {ADAPTER_WEIGHTS}")
    with opened(adapter / ADAPTER_WEIGHTS) as tensors:
        changes = find_changes(config, peft_config, tensors.keys())
        stored = stored_weights(folder)
        cast = None if dtype == "auto" else getattr(torch, dtype)
        merge = ShardMerge(base=folder, stored=stored, changes=changes, adapter=tensors, dtype=cast)
        merge.check(adapter, base)
        merge.write(directory)
    config.architectures, config.dtype = [type(changes.model.model).__name__], cast or main_dtype(stored)
    if changes.unties:
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
    config.save_pretrained(directory)
    return config.dtype


def _merge_in_memory(adapter: Path, config: PreTrainedConfig, directory: Path, dtype: DtypeName) -> torch.dtype:
    """Write configuration and weights, and return the weights' type."""
    declared = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    resolved = declared if dtype == "auto" else getattr(torch, dtype)
    load_adapter(adapter, dtype=resolved).merge_and_unload().save_pretrained(directory)
    return resolved


def _write_rest(adapter: Path, base: str, config: PreTrainedConfig, directory: Path) -> None:
    """Write tokenizer and generation config: those of the adapter, or else of the base."""
    has_tokenizer = (adapter / "tokenizer_config.json").exists()
    tokenizer = load_tokenizer(str(adapter) if has_tokenizer else base)
    save_tokenizer(tokenizer, directory)
    has_settings = (adapter / GENERATION_CONFIG_NAME).exists()
    lasting_settings(saved_settings(adapter if has_settings else base, config), tokenizer).save_pretrained(directory)


def _compare(adapter: Path, directory: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Compare the logits of the adapter on its base with those of the merged model in plain transformers.

    Raises:
        CheckpointError: they differ by more than rounding can explain.
    """
    config = AutoConfig.from_pretrained(directory)
    text_config = config.get_text_config()
    shape = 1, min(_PROBE_TOKENS, text_config.max_position_embeddings)
    tokens = torch.randint(text_config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    expected = _logits(load_adapter(adapter, dtype=dtype), tokens)
    gc.collect()  # models contain reference cycles
    AutoTokenizer.from_pretrained(directory)
    attention = ordinary_attention(config)
    found = _logits(AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention), tokens)
    if found.shape != expected.shape:
        raise CheckpointError(
            f"the merged model has {found.shape[-1]} logits, the adapter {expected.shape[-1]}; nothing was written"
        )
    difference = found - expected
    relative = float(difference.norm() / expected.norm().clamp_min(1e-6))
    if not relative <= _TOLERANCE[dtype]:
        raise CheckpointError(
            f"the merged model does not agree with the adapter: logits differ by {relative:.2%} of their size, but "
            f"rounding explains at most {_TOLERANCE[dtype]:.2%}; nothing was written"
        )
    return {
        "probe_tokens": tokens.numel(),
        "largest_difference": float(difference.abs().max()),
        "largest_logit": float(expected.abs().max()),
        "relative_difference": relative,
    }


@torch.inference_mode()
def _logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=tokens.to(model.device), use_cache=False).logits.float().cpu()  # (1, length, vocab)


def check_login(repo: str) -> None:
    """Check the repository name and login before hours of work on the model to upload.

    Raises:
        ConfigError: the name is not a valid hub name, or the user is not logged in.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repo}: this is not a valid name; write it as YOUR_NAME/MODEL") from error
    if get_token() is None:
        raise ConfigError("uploading needs a hub token: run `hf auth login`, or set HF_TOKEN")


def push_to_hub(directory: Path, repo: str, *, private: bool = False) -> str:
    """Upload a directory to a hub repository, created if necessary, and return its URL.

    Raises:
        ConfigError: the upload fails; the directory is unchanged.
    """
    api = HfApi()
    try:
        created = api.create_repo(repo, private=private, exist_ok=True)
        # The hub's response includes the owner, which the user may have omitted.
        api.upload_folder(repo_id=created.repo_id, folder_path=directory, commit_message="Upload merged model")
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"{repo} could not be uploaded ({first_line(error)}); the model is in {directory}: retry with `hf upload "
            f"{repo} {directory}`"
        ) from error
    return str(created)
