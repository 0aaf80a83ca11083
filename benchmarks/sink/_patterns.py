"""Load a pretrained model whose attention follows a named pattern, including two that recipes do not have.

The patterns are `full`; `s2`, as in the paper; `rows`, with all heads cut at the same places; and `no shift`, the same
under another name, for use with sinks. With the suffix ` sinkN`, every group also sees the first N tokens; with
` fullN`, one layer in N has full attention; with ` finishN`, the last N % of the steps train with full attention.
"""

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface

from longlora.attention import CutPoints, attend_in_segments, cut_points
from longlora.models.load import load_config, load_weights
from longlora.models.lora import add_adapter
from longlora.models.memory_optimizations import keep_hidden_states_in

_NAME = "by pattern"
_LOGITS_AT_A_TIME = 1024  # tokens
_cuts: list[CutPoints] = []
"""For the following forward passes: of each layer, repeated."""


def follow(pattern: str, tokens: int, group_size: int, *, progress: float = 0.0) -> None:
    """Make rows of `tokens` tokens attend by a pattern from now on; `progress` is the share of the steps before."""
    parts = re.fullmatch(r"(.*?)(?: sink(\d+))?(?: full(\d+))?(?: finish(\d+))?", pattern)
    assert parts
    name, sinks, interval, finish = parts.groups()
    if progress >= 1 - int(finish or 0) / 100:
        name, sinks, interval = "full", None, None
    cuts = cut_points(1, tokens, group_size=None if name == "full" else group_size, sink_tokens=int(sinks or 0))
    if name in ("rows", "no shift"):
        cuts = CutPoints(cuts.unshifted, None, cuts.sink_tokens, cuts.documents, cuts.group_size)
    _cuts[:] = [cuts]
    if interval:
        _cuts[:] = [cuts] * (int(interval) - 1) + [cut_points(1, tokens, group_size=None)]


def load(path: Path, dtype: torch.dtype, device: torch.device, *, tuning: str) -> Any:
    """Load a model that follows patterns, for `lora` or `lora+` (rank 16, attention) with float32 trainable weights."""
    model = copy.deepcopy(_base(path, dtype, device))
    trainable = ("embed", "norm") if tuning == "lora+" else ()
    model = add_adapter(model, trainable=trainable, r=16, lora_alpha=32, lora_dropout=0.0, target_modules="attention")
    keep_hidden_states_in(model, dtype)
    return model.train()


@cache
def _base(path: Path, dtype: torch.dtype, device: torch.device) -> Any:
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, lambda **_: None)
    config = load_config(str(path), trust_remote_code=False)
    return load_weights(str(path), config, dtype=dtype, attention=_NAME).to(device)


def token_losses(model: Any, rows: Tensor, autocast: torch.autocast) -> Tensor:
    """Return the loss of each token but the first, (B, T - 1), without holding all logits in memory."""
    with autocast:
        states = _states(model, rows)[:, :-1]  # (B, T - 1, hidden)
        parts = zip(states.split(_LOGITS_AT_A_TIME, dim=1), rows[:, 1:].split(_LOGITS_AT_A_TIME, dim=1), strict=True)
        head = model.get_output_embeddings()
        return torch.cat([checkpoint(_losses, head, *part, use_reentrant=False) for part in parts], dim=1)


def likeliest_tokens(model: Any, rows: Tensor, autocast: torch.autocast, *, count: int) -> list[int]:
    """Return the likeliest token at each of the last `count` positions of one row."""
    with autocast:
        states = _states(model, rows)[0, -count - 1 : -1]  # (count, hidden)
        return model.get_output_embeddings()(states).argmax(dim=-1).tolist()


def gradient_norm(model: Any) -> float:
    """Return the norm of all gradients together."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def _states(model: Any, rows: Tensor) -> Tensor:
    return model.get_base_model().model(input_ids=rows, use_cache=False).last_hidden_state


def _losses(head: torch.nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    # Flatten to rows of logits: along the middle of three dimensions, the GPU kernel takes seconds.
    losses = cross_entropy(head(states).float().flatten(0, 1), targets.flatten(), reduction="none")  # (B · T,)
    return losses.view_as(targets)


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    cuts = _cuts[module.layer_idx % len(_cuts)]
    output = attend_in_segments(query, key, value, cuts, scale=scaling)  # (1, H, T, D)
    return output.transpose(1, 2).contiguous(), None  # (1, T, H, D)
