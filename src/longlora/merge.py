"""Fold an adapter into its base: an ordinary model directory that needs neither PEFT nor longlora."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from longlora.checkpoint import is_adapter, read_extension, whole_directory
from longlora.errors import CheckpointError, ConfigError
from longlora.model import DtypeName, compute_dtype, load_adapter, load_tokenizer
from longlora.rope import extended_parameters, v4_rope

logger = logging.getLogger("longlora")

_PROBE_TOKENS = 512
# Largest difference of logits, relative to the largest logit, that rounding of the merged weights explains.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """How well a merged model, read back from disk, agrees with the adapter that it was made of."""

    largest_difference: float
    """Largest absolute difference of any logit over the probe."""

    largest_logit: float
    """Largest absolute logit of the adapter over the probe: the scale of the difference."""

    probe_tokens: int
    """Tokens compared, drawn at random from the vocabulary."""


def merge_adapter(
    adapter: Path, output: Path, *, dtype: DtypeName = "float32", older_readers: bool = False
) -> MergeReport:
    """Write the merged model to `output`, then load it with plain transformers and compare logits.

    The merged configuration carries the extended positions; with `older_readers` also in the keys of transformers 4
    (`rope_theta`, `rope_scaling`), where vLLM and llama.cpp's converter may look for them. Memory: up to three times
    the model.

    An adapter that was trained on a base of 4 bits is merged into the base itself: weights that were unpacked from 4
    bits and updated would have to be stored in 16 bits anyhow, with the error of packing made permanent. The merged
    model so differs by that error from what was trained, and a warning says so.

    Raises:
        CheckpointError: `adapter` is no adapter or damaged, `output` exists, or the merged model does not agree.
        ConfigError: the keys of transformers 4 have no room for the model's positions.
    """
    if not is_adapter(adapter):
        raise CheckpointError(f"{adapter} holds no adapter: adapter_config.json is missing")
    extension = read_extension(adapter)
    if extension and extension.quantization:
        logger.warning(
            "%s was trained on a base packed to %s and is merged into the base itself: evaluate the merged model",
            adapter,
            extension.quantization,
        )
    resolved = compute_dtype(dtype)
    adapted = load_adapter(adapter, dtype=resolved).eval()
    config = adapted.config.get_text_config()
    tokens = _probe(config.vocab_size, config.max_position_embeddings)
    expected = _logits(adapted, tokens)
    with whole_directory(output) as directory:
        _save_merged(adapted, adapter, directory)
        if older_readers:
            _add_v4_keys(directory, config)
        return _verify(directory, tokens, expected, resolved)


def _save_merged(adapted: PeftModel, adapter: Path, directory: Path) -> None:
    merged = adapted.merge_and_unload()
    merged.save_pretrained(directory)
    has_tokenizer = (adapter / "tokenizer_config.json").exists()
    load_tokenizer(str(adapter) if has_tokenizer else merged.config.name_or_path).save_pretrained(directory)


def _add_v4_keys(directory: Path, config: PreTrainedConfig) -> None:
    """Write the positions in the older keys too, and see that transformers 5 still reads the same ones."""
    path = directory / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values.get("text_config", values).update(v4_rope(config.rope_parameters, model_type=config.model_type))
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    wanted = dict(extended_parameters(config.rope_parameters))
    read = dict(extended_parameters(AutoConfig.from_pretrained(directory).get_text_config().rope_parameters))
    wanted.pop("type", None)
    read.pop("type", None)
    if config.model_type == "phi3":  # three keys and no factor, which follows from the contexts
        wanted.pop("factor", None)
    if read != wanted:
        raise ConfigError(
            f"with the keys of transformers 4 beside its own, {config.model_type} would be read with positions {read} "
            f"instead of {wanted}; merge without --v4-rope"
        )


def _verify(directory: Path, tokens: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> MergeReport:
    AutoTokenizer.from_pretrained(directory)
    reloaded = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    report = MergeReport(
        largest_difference=float((_logits(reloaded, tokens) - expected).abs().max()),
        largest_logit=float(expected.abs().max()),
        probe_tokens=tokens.numel(),
    )
    if not report.largest_difference <= _TOLERANCE[dtype] * max(1.0, report.largest_logit):
        raise CheckpointError(
            f"the merged model does not agree with the adapter: logits differ by up to {report.largest_difference:.3g} "
            f"on a scale of {report.largest_logit:.3g}; nothing was written"
        )
    return report


def _probe(vocab_size: int, context_length: int) -> torch.Tensor:
    length = min(_PROBE_TOKENS, context_length)
    return torch.randint(vocab_size, (1, length), generator=torch.Generator().manual_seed(0))  # (1, length)


@torch.inference_mode()
def _logits(model: PreTrainedModel | PeftModel, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens.to(model.device), use_cache=False).logits.float().cpu()  # (1, length, vocabulary)
