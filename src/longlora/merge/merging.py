"""The story of a merge: find what changes, write it file by file, compare it with the adapter, upload it if asked."""

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from longlora.errors import CheckpointError, ConfigError, first_line
from longlora.merge.card import write_card
from longlora.merge.changes import OtherWay, find_changes
from longlora.merge.streaming import ShardMerge
from longlora.models.checkpoint import ADAPTER_WEIGHTS, Extension, check_adapter, read_extension, save_tokenizer
from longlora.models.compat import ordinary_attention
from longlora.models.generation import lasting_settings, saved_settings
from longlora.models.load import apply_extension, load_adapter, load_config, load_tokenizer, model_source
from longlora.models.positions import write_older_keys
from longlora.models.shards import main_dtype, model_folder, opened, stored_weights
from longlora.support.files import whole_directory

logger = logging.getLogger("longlora")

MergedDtype = Literal["auto", "float32", "bfloat16", "float16"]

_PROBE_TOKENS = 512
# Root mean square of the differences, relative to that of the logits, that rounding of the merged weights explains. The
# largest of a million differences says little of them: in 16 bits there is always one far out.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far logits of a merged model are from the adapter's."""

    largest_difference: float
    """Largest absolute difference of any logit over the probe."""

    largest_logit: float
    """Largest absolute logit of the adapter over the probe: the scale of the difference."""

    relative_difference: float
    """Root mean square of the differences over that of the adapter's logits."""

    probe_tokens: int
    """Tokens compared, drawn at random from the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge did, and how well the result, read back from the disk, agrees with the adapter."""

    agreement: Agreement | None
    """None where it was not asked for."""

    dtype: torch.dtype
    """Of the merged weights, or of most of them."""

    shard_by_shard: bool
    """Whether little memory was needed; otherwise PEFT merged the whole model in memory."""

    @property
    def largest_difference(self) -> float:
        """Of the logits; not a number where they were not compared."""
        return self.agreement.largest_difference if self.agreement else float("nan")

    @property
    def largest_logit(self) -> float:
        """Absolute, of the adapter; not a number where they were not compared."""
        return self.agreement.largest_logit if self.agreement else float("nan")

    @property
    def probe_tokens(self) -> int:
        """Tokens over which logits were compared."""
        return self.agreement.probe_tokens if self.agreement else 0


def merge_adapter(
    adapter: Path,
    output: Path,
    *,
    dtype: MergedDtype = "auto",
    older_readers: bool | None = None,
    check: bool = True,
) -> MergeReport:
    """Write the merged model to `output`, which appears when all of it is there and has been compared.

    The base's safetensors are read, changed and written one after another, each low-rank update computed in float32
    and rounded once: whatever the model's size, the merge holds in memory one of the files and what it becomes. Where
    an adapter or a base does not allow that, the whole model is merged in memory by PEFT, and a message says why.

    The comparison loads the adapter on its base, and then the merged model with plain transformers: one model at a
    time. The configuration carries the extended positions, also in the keys of transformers 4 (`rope_theta`,
    `rope_scaling`), where other readers look for them. A warning names each reader that misreads them.

    An adapter that was trained on a base of 4 bits is merged into the base itself: weights that were unpacked from 4
    bits and updated would have to be stored in 16 bits anyhow, with the error of packing made permanent. The merged
    model so differs by that error from what was trained, and a warning says so.

    Args:
        adapter: directory of an adapter, longlora's or any of PEFT's.
        output: directory to be made.
        dtype: of the merged weights; `auto` leaves each in the type that it has in the base.
        older_readers: True refuses positions that the keys of transformers 4 cannot say, False leaves these keys out;
            None writes them where they can be written.
        check: compare logits before `output` appears.

    Raises:
        CheckpointError: `adapter` is no adapter or damaged, `output` exists, the disk is full, or the merged model
            does not agree.
        ConfigError: `older_readers` is True, and the keys of transformers 4 have no room for the model's positions.
    """
    check_adapter(adapter)
    extension = read_extension(adapter)
    _warn_of_packing(adapter, extension)
    peft_config = _read_peft_config(adapter)
    base = model_source(extension.base_model if extension else peft_config.base_model_name_or_path)
    config = load_config(base)
    if extension:
        apply_extension(config, extension)
        if extension.vocabulary_rows:
            config.get_text_config().vocab_size = extension.vocabulary_rows
    tokens = _probe(config)
    with whole_directory(output) as directory:
        expected: torch.Tensor | None = None
        try:
            written = _merge_by_shard(adapter, peft_config, base, config, directory, dtype)
            if check:
                expected = _logits(load_adapter(adapter, dtype=written), tokens)
            by_shard = True
        except OtherWay as reason:
            logger.warning("merging the whole model in memory, since it is not possible file by file: %s", reason)
            written, expected = _merge_in_memory(adapter, config, directory, dtype, tokens)
            by_shard = False
        _write_rest(adapter, base, config, extension, directory)
        if older_readers is not False:
            write_older_keys(directory, required=bool(older_readers))
        agreement = _compare(directory, tokens, expected, written) if check and expected is not None else None
        return MergeReport(agreement=agreement, dtype=written, shard_by_shard=by_shard)


def _warn_of_packing(adapter: Path, extension: Extension | None) -> None:
    if extension and extension.quantization:
        logger.warning(
            "%s was trained on a base packed to %s and is merged into the base itself: evaluate the merged model",
            adapter,
            extension.quantization,
        )


def _read_peft_config(adapter: Path) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(adapter)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"the configuration of the adapter in {adapter} cannot be read: {error}") from error


def _merge_by_shard(
    adapter: Path, peft_config: PeftConfig, base: str, config: PreTrainedConfig, directory: Path, dtype: MergedDtype
) -> torch.dtype:
    """Write configuration and weights; return the type of the weights."""
    folder = model_folder(base)
    if folder is None:
        raise OtherWay(f"{base} has no safetensors")
    if getattr(config, "quantization_config", None):
        raise OtherWay(f"{base} is stored in fewer bits")
    if not (adapter / ADAPTER_WEIGHTS).exists():
        raise OtherWay(f"{adapter} has no {ADAPTER_WEIGHTS}")
    with opened(adapter / ADAPTER_WEIGHTS) as tensors:
        changes = find_changes(config, peft_config, tensors.keys())
        stored = stored_weights(folder)
        cast = None if dtype == "auto" else getattr(torch, dtype)
        merge = ShardMerge(base=folder, stored=stored, changes=changes, adapter=tensors, dtype=cast)
        merge.check_covered()
        merge.check_fits(adapter, base)
        merge.write(directory)
    written = cast or main_dtype(stored)
    config.architectures = [changes.architecture]
    config.dtype = written
    if changes.unties:
        config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
    config.save_pretrained(directory)
    return written


def _merge_in_memory(
    adapter: Path, config: PreTrainedConfig, directory: Path, dtype: MergedDtype, tokens: torch.Tensor
) -> tuple[torch.dtype, torch.Tensor]:
    """Write configuration and weights; return their type and the adapter's logits."""
    declared = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    resolved = declared if dtype == "auto" else getattr(torch, dtype)
    adapted = load_adapter(adapter, dtype=resolved)
    expected = _logits(adapted, tokens)
    adapted.merge_and_unload().save_pretrained(directory)
    return resolved, expected


def _write_rest(
    adapter: Path, base: str, config: PreTrainedConfig, extension: Extension | None, directory: Path
) -> None:
    has_tokenizer = (adapter / "tokenizer_config.json").exists()
    tokenizer = load_tokenizer(str(adapter) if has_tokenizer else base)
    save_tokenizer(tokenizer, directory)
    has_settings = (adapter / GENERATION_CONFIG_NAME).exists()
    lasting_settings(saved_settings(adapter if has_settings else base, config), tokenizer).save_pretrained(directory)
    write_card(directory, adapter=adapter, base=base, extension=extension)


def _probe(config: PreTrainedConfig) -> torch.Tensor:
    """Draw tokens to compare models on; always the same for the same configuration."""
    text_config = config.get_text_config()
    length = min(_PROBE_TOKENS, text_config.max_position_embeddings)
    return torch.randint(text_config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))  # (1, length)


@torch.inference_mode()
def _logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=tokens.to(model.device), use_cache=False).logits.float().cpu()  # (1, length, vocab)


def _compare(directory: Path, tokens: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> Agreement:
    """Load the merged model with plain transformers and compare it with the adapter's logits.

    Raises:
        CheckpointError: they differ by more than rounding explains.
    """
    gc.collect()  # what was loaded for the adapter's logits: models hold cycles
    AutoTokenizer.from_pretrained(directory)
    attention = ordinary_attention(AutoConfig.from_pretrained(directory))
    found = _logits(AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention), tokens)
    if found.shape != expected.shape:
        raise CheckpointError(
            f"the merged model has {found.shape[-1]} logits and the adapter {expected.shape[-1]}; nothing was written"
        )
    difference = found - expected
    agreement = Agreement(
        largest_difference=float(difference.abs().max()),
        largest_logit=float(expected.abs().max()),
        relative_difference=float(difference.norm() / expected.norm().clamp_min(1e-6)),
        probe_tokens=tokens.numel(),
    )
    if not agreement.relative_difference <= _TOLERANCE[dtype]:
        raise CheckpointError(
            f"the merged model does not agree with the adapter: logits differ by {agreement.relative_difference:.2%} "
            f"of their size, at most {_TOLERANCE[dtype]:.2%} is rounding; nothing was written"
        )
    return agreement


def check_login(repo: str) -> None:
    """See that uploading can begin, before hours are spent on what is to be uploaded.

    Raises:
        ConfigError: the name cannot be one of the hub, or nobody is logged in.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repo}: no such name is possible; write it as YOUR_NAME/MODEL") from error
    if get_token() is None:
        raise ConfigError("uploading needs a token of the hub: run `hf auth login`, or set HF_TOKEN")


def push_to_hub(directory: Path, repo: str, *, private: bool = False) -> str:
    """Upload a directory to a repository of the hub, made if need be, and return its address.

    Raises:
        ConfigError: the hub refuses; the directory is as it was.
    """
    api = HfApi()
    try:
        created = api.create_repo(repo, private=private, exist_ok=True)
        # The hub's answer names the owner where the user left it out.
        api.upload_folder(repo_id=created.repo_id, folder_path=directory, commit_message="Upload merged model")
    except (HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"{repo} could not be uploaded ({first_line(error)}); the model lies in {directory}, so `hf upload {repo} "
            f"{directory}` can be tried again"
        ) from error
    return str(created)
