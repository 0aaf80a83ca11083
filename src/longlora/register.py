"""Make `attn_implementation="s2"` known to transformers; importing this module is enough.

A model loaded or switched (`model.set_attn_implementation("s2")`) to "s2" trains with S²-Attn. It evaluates and
generates with ordinary attention: exactly as with "sdpa", or as with "eager" where it has a softcap or sinks, which
"sdpa" lacks. Nothing is patched: one function is registered in each of transformers' two public tables, the one of
attentions and the one of masks.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from longlora.attention import attend_in_segments
from longlora.deferred_mask import DeferredMask
from longlora.errors import ConfigError

DEFAULT_GROUP_RATIO = 0.25
# Arguments of the interface that change what attention computes and that S²-Attn does not implement.
_UNSUPPORTED = ("position_bias", "indices", "block_indices", "sinks")


def set_group_size(model: PreTrainedModel, group_size: int | None) -> None:
    """Fix the group size of a model that trains with "s2", in tokens; None trains with full causal attention.

    Until this is called the group is a quarter of each row. Full attention under "s2" keeps to documents without a
    mask in memory, which ordinary "sdpa" attention over packed rows needs.
    """
    if group_size is not None and group_size < 1:
        raise ConfigError(f"group_size must be at least 1 token, got {group_size}")
    model.config.get_text_config().s2_group_size = group_size


def forget_group_size(model: PreTrainedModel) -> None:
    """Take the group size out of the model's configuration, where it would be saved as if the model depended on it."""
    text_config = model.config.get_text_config()
    if hasattr(text_config, "s2_group_size"):
        del text_config.s2_group_size


def _s2_mask(**arguments: Any) -> DeferredMask | Tensor | None:
    # Below transformers 5.18 `generate` hands the mask that it made for a static cache to the model, which asks again.
    if isinstance(arguments["attention_mask"], DeferredMask):
        return arguments["attention_mask"]
    if arguments["q_length"] != arguments["kv_length"]:  # a KV cache: not training
        return sdpa_mask(**arguments)
    if arguments["attention_mask"] is not None and arguments["attention_mask"].is_meta:  # has no values to look at
        arguments["attention_mask"] = None
    return DeferredMask(arguments)


def s2_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: DeferredMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **interface_arguments: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' interface asks: query (B, H, T, D), key and value (B, H_kv, T, D) -> (B, T, H, D)."""
    if unsupported := [name for name in _UNSUPPORTED if interface_arguments.get(name) is not None]:
        raise ConfigError(
            f"{type(module).__name__} needs {', '.join(unsupported)}, which S²-Attn does not implement; "
            "train this model with attention.pattern: full"
        )
    in_segments = _trains_in_segments(module, attention_mask, query, key)
    is_beyond_sdpa = softcap is not None or s_aux is not None
    if dropout > 0 and (in_segments or is_beyond_sdpa):
        raise ConfigError(
            f"S²-Attn has no attention dropout: set attention_dropout to 0 in the model's config, not {dropout}"
        )
    if in_segments:
        assert isinstance(attention_mask, DeferredMask)
        group_size = getattr(module.config, "s2_group_size", max(1, round(query.shape[2] * DEFAULT_GROUP_RATIO)))
        output = _attend_in_segments(
            query,
            key,
            value,
            attention_mask,
            group_size if attention_mask.window is None else None,
            position_ids=position_ids,
            cu_seqlens=cu_seq_lens_q,
            scale=scaling,
            softcap=softcap,
            sinks=s_aux,
        )  # (B, H, T, D)
        return output.transpose(1, 2).contiguous(), None  # (B, T, H, D); some models take a view of it
    if module.training and not isinstance(attention_mask, DeferredMask):
        raise ConfigError(
            'while training, attn_implementation="s2" takes whole rows with a (B, T) padding mask: neither a mask of '
            "queries by keys nor a KV cache"
        )
    dense = attention_mask.dense if isinstance(attention_mask, DeferredMask) else attention_mask
    if dense is not None:  # layers may be spread over devices
        dense = dense.to(query.device)
    if not is_beyond_sdpa:
        return sdpa_attention_forward(
            module, query, key, value, dense, dropout=dropout, scaling=scaling, **interface_arguments
        )
    output = _masked_attention(query, key, value, dense, scale=scaling, softcap=softcap, sinks=s_aux)  # (B, H, T, D)
    return output.transpose(1, 2), None  # (B, T, H, D)


def trains_in_groups(module: torch.nn.Module, attention_mask: DeferredMask | Tensor | None) -> bool:
    """Whether a layer that got this mask trains with S²-Attn, and not with the attention that it evaluates with."""
    return module.training and isinstance(attention_mask, DeferredMask) and attention_mask.window is None


def _trains_in_segments(
    module: torch.nn.Module, attention_mask: DeferredMask | Tensor | None, query: Tensor, key: Tensor
) -> bool:
    """Whether attention is computed between cuts: in groups, or within a window and documents without a mask for it."""
    if not (module.training and isinstance(attention_mask, DeferredMask)):
        return False
    keys_are_the_row = query.shape[2] == key.shape[2]
    if attention_mask.window is not None:
        return keys_are_the_row and attention_mask.is_cut
    if not keys_are_the_row:
        raise ConfigError(
            f"{type(module).__name__} attends from {query.shape[2]} tokens to {key.shape[2]} others, which S²-Attn "
            "cannot cut into groups; train this model with attention.pattern: full"
        )
    return True


def _masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend with what "sdpa" lacks, as the models' own "eager" attention does; memory O(B·H·T²)."""
    num_heads, num_tokens = query.shape[1:3]
    if mask is None and num_tokens > 1:
        key, value = key[:, :, :num_tokens], value[:, :, :num_tokens]  # the rest of a static cache is empty yet
        mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=query.device).tril()  # (T, T)
    key, value = (repeat_kv(tensor, num_heads // tensor.shape[1]) for tensor in (key, value))  # (B, H, T_kv, D)
    scores = (query @ key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scale is None else scale)  # (B, H, T, T_kv)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)  # (B, H, T, 1)
        scores = torch.cat([scores, column], dim=-1)  # (B, H, T, T_kv + 1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    return weights[..., : key.shape[2]] @ value  # (B, H, T, D)


@torch.compiler.disable  # cut points are numbers that differ from batch to batch: traced, each would compile anew
def _attend_in_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: DeferredMask,
    group_size: int | None,
    *,
    position_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    cuts = mask.cuts(query.shape[2], group_size=group_size, position_ids=position_ids, cu_seqlens=cu_seqlens)
    return attend_in_segments(query, key, value, cuts, scale=scale, softcap=softcap, sinks=sinks, window=mask.window)


AttentionInterface.register("s2", s2_attention_forward)
AttentionMaskInterface.register("s2", _s2_mask)
