"""See that a merged model, read back from the disk, is the adapter on its base."""

import gc
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from longlora.errors import CheckpointError
from longlora.models.compat import ordinary_attention

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


def probe(config: PreTrainedConfig) -> torch.Tensor:
    """Draw tokens to compare models on; always the same for the same configuration."""
    text_config = config.get_text_config()
    length = min(_PROBE_TOKENS, text_config.max_position_embeddings)
    return torch.randint(text_config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))  # (1, length)


@torch.inference_mode()
def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Run a model, or an adapter on its base, over the probe."""
    return model.eval()(input_ids=tokens.to(model.device), use_cache=False).logits.float().cpu()  # (1, length, vocab)


def compare(directory: Path, tokens: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> Agreement:
    """Load the merged model with plain transformers and compare it with the adapter's logits.

    Raises:
        CheckpointError: they differ by more than rounding explains.
    """
    gc.collect()  # what was loaded for the adapter's logits: models hold cycles
    AutoTokenizer.from_pretrained(directory)
    attention = ordinary_attention(AutoConfig.from_pretrained(directory))
    found = logits(AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention), tokens)
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
