"""Make `attn_implementation="s2"` known to transformers; importing this module is enough.

A model loaded or switched (`model.set_attn_implementation("s2")`) to "s2" trains with S²-Attn and evaluates and
generates with ordinary attention, exactly as with "sdpa". Nothing is patched: one function is registered in each of
transformers' two public tables, the one of attentions and the one of masks.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from longlora.attention import CutPoints, attend_in_segments, cut_points
from longlora.errors import ConfigError

DEFAULT_GROUP_RATIO = 0.25
# Arguments of the interface that change what attention computes and that S²-Attn does not implement.
_UNSUPPORTED = ("position_bias", "indices", "block_indices", "sinks")
_NO_DROPOUT = "S²-Attn has no attention dropout: set attention_dropout to 0 in the model's config, not {}"


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


class DeferredMask:
    """What a batch's attention mask is made of, so that each kind of attention takes from it what it needs.

    transformers makes the mask once, before the first layer, when it is not known yet whether the layers train. S²-Attn
    needs only the places to cut; ordinary attention needs the (B, 1, T, T) mask. Each is computed at most once a
    forward pass, and only if asked for.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._cuts: dict[int | None, CutPoints] = {}

    @cached_property
    def dense(self) -> Tensor | None:
        """The mask that "sdpa" would get: (B, 1, T, T) booleans, or None for plain causal attention."""
        return sdpa_mask(**self._arguments)

    @cached_property
    def is_causal(self) -> bool:
        """Whether no token sees the one after it, as where attention goes both ways, or does within an image."""
        mask_function, device = self._arguments["mask_function"], self._arguments["device"]
        if mask_function is causal_mask_function:
            return True
        rows = torch.arange(self._arguments["batch_size"], device=device)[:, None]  # (B, 1)
        time = torch.arange(self._arguments["q_length"] - 1, device=device)  # (T-1,)
        return not mask_function(rows, 0, time, time + 1).any()

    @property
    def is_windowed(self) -> bool:
        """Whether the layer limits how far back it looks by itself (sliding window, chunks)."""
        return self._arguments.get("local_size") is not None

    def cuts(
        self, num_tokens: int, *, group_size: int | None, position_ids: Tensor | None, cu_seqlens: Tensor | None
    ) -> CutPoints:
        """The cut points of S²-Attn; documents begin where `position_ids` do not go on by one, or at `cu_seqlens`."""
        if group_size not in self._cuts:
            batch_size, padding_mask = self._arguments["batch_size"], self._arguments["attention_mask"]
            if self._arguments["mask_function"] is not causal_mask_function and (
                self._arguments["use_vmap"] or (position_ids is None and cu_seqlens is None) or not self.is_causal
            ):
                raise ConfigError(
                    "this model hides tokens from one another by a mask of its own, which S²-Attn cannot follow; "
                    "train it with attention.pattern: full"
                )
            if padding_mask is not None and padding_mask.all():
                padding_mask = None
            if cu_seqlens is None and position_ids is not None:
                position_ids = position_ids.to(self._arguments["device"]).expand(batch_size, -1)  # (B, T)
                cu_seqlens = _document_borders(position_ids, padding_mask)
            self._cuts[group_size] = cut_points(
                batch_size, num_tokens, group_size=group_size, cu_seqlens=cu_seqlens, padding_mask=padding_mask
            )
        return self._cuts[group_size]


def _document_borders(position_ids: Tensor, padding_mask: Tensor | None) -> Tensor | None:
    """Borders of documents in the flattened batch, from 0 to B·T; positions within padding (B, T) mean nothing."""
    if position_ids.is_meta:
        return None
    is_first = position_ids.diff(dim=1, prepend=position_ids[:, :1]) != 1  # (B, T)
    if padding_mask is not None:
        is_first &= padding_mask
    is_first[:, 0] = True
    starts = is_first.flatten().nonzero().flatten()  # (documents,)
    return torch.cat([starts, starts.new_tensor([position_ids.numel()])])


def _s2_mask(**arguments: Any) -> DeferredMask | Tensor | None:
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
    if trains_in_groups(module, attention_mask):
        _refuse_what_groups_lack(module, query, key, dropout)
        group_size = getattr(module.config, "s2_group_size", max(1, round(query.shape[2] * DEFAULT_GROUP_RATIO)))
        output = _attend_in_groups(
            query,
            key,
            value,
            attention_mask,
            group_size,
            position_ids=position_ids,
            cu_seqlens=cu_seq_lens_q,
            scale=scaling,
            softcap=softcap,
            sinks=s_aux,
        )  # (B, H, T, D)
        return output.transpose(1, 2), None  # (B, T, H, D)
    if module.training and not isinstance(attention_mask, DeferredMask):
        raise ConfigError(
            'while training, attn_implementation="s2" takes whole rows with a (B, T) padding mask: neither a mask of '
            "queries by keys nor a KV cache"
        )
    dense = attention_mask.dense if isinstance(attention_mask, DeferredMask) else attention_mask
    if dense is not None:  # layers may be spread over devices
        dense = dense.to(query.device)
    if softcap is None and s_aux is None:
        return sdpa_attention_forward(
            module, query, key, value, dense, dropout=dropout, scaling=scaling, **interface_arguments
        )
    if dropout > 0:
        raise ConfigError(_NO_DROPOUT.format(dropout))
    output = _masked_attention(query, key, value, dense, scale=scaling, softcap=softcap, sinks=s_aux)  # (B, H, T, D)
    return output.transpose(1, 2), None  # (B, T, H, D)


def trains_in_groups(module: torch.nn.Module, attention_mask: DeferredMask | Tensor | None) -> bool:
    """Whether a layer that got this mask trains with S²-Attn, and not as it evaluates."""
    return module.training and isinstance(attention_mask, DeferredMask) and not attention_mask.is_windowed


def _refuse_what_groups_lack(module: torch.nn.Module, query: Tensor, key: Tensor, dropout: float) -> None:
    if query.shape[2] != key.shape[2]:
        raise ConfigError(
            f"{type(module).__name__} attends from {query.shape[2]} tokens to {key.shape[2]} others, which S²-Attn "
            "cannot cut into groups; train this model with attention.pattern: full"
        )
    if dropout > 0:
        raise ConfigError(_NO_DROPOUT.format(dropout))


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
def _attend_in_groups(
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
    return attend_in_segments(query, key, value, cuts, scale=scale, softcap=softcap, sinks=sinks)


AttentionInterface.register("s2", s2_attention_forward)
AttentionMaskInterface.register("s2", _s2_mask)
