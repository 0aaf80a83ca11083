"""Register `attn_implementation="s2"` with transformers on import.

A model loaded with or switched to "s2" (`model.set_attn_implementation("s2")`) trains with S²-Attn. It evaluates and
generates with ordinary attention: exactly as with "sdpa", or as with "eager" if it has a softcap or sinks, which "sdpa"
lacks. Nothing is patched: one function is registered in each of transformers' public tables of attentions and masks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from longlora.attention import HeadShard, attend_in_segments
from longlora.errors import ConfigError
from longlora.models import probe
from longlora.models.deferred_mask import DeferredMask
from longlora.models.grouping import USE_FULL_ATTENTION, Grouping, grouping_of, set_grouping

# Arguments of the interface that change what attention computes and that S²-Attn does not implement.
_UNSUPPORTED = ("position_bias", "indices", "block_indices", "sinks")
_DOCUMENTS = Grouping(group_size=None)
_KINDS_OF_LAYERS_WITHOUT_A_MASK = {"full_attention", "sliding_attention"}


def set_group_size(
    model: torch.nn.Module,
    group_size: int | None,
    *,
    shift: bool = True,
    sink_tokens: int = 0,
    full_attention_interval: int | None = None,
) -> None:
    """Set the group size, in tokens, of a model that trains with "s2"; None trains with full causal attention.

    Without this call, the group size is the environment variable `LONGLORA_GROUP_SIZE`, or a quarter of the model's
    context (`max_position_embeddings`). It is not saved with the model. A warning lists the layers that train in
    groups if others keep their own window. Full attention with "s2" separates documents without the mask in memory that
    ordinary "sdpa" attention over packed rows needs.

    The model may be wrapped (PEFT, DDP). Without `shift`, all heads have the same groups; in the paper, those of half
    of the heads are shifted by half a group. Each group also sees the first `sink_tokens` tokens of its document, where
    pretrained models have an attention sink; the paper has 0. One layer in every `full_attention_interval` trains with
    full attention; the paper has none. Without `shift` and without these layers, no token attends beyond its group. The
    environment variables are `LONGLORA_SHIFT` (0 or 1), `LONGLORA_SINK_TOKENS` and `LONGLORA_FULL_ATTENTION_INTERVAL`.

    Raises:
        ConfigError: the group size is below 1, the number of sink tokens below 0, the interval below 2 or above the
            number of layers, one of these or `shift` is given without a group size, the model uses an attention other
            than "s2", or no layer would train in groups.
    """
    grouping = Grouping(
        group_size=group_size, shift=shift, sink_tokens=sink_tokens, full_attention_interval=full_attention_interval
    )
    if group_size is not None:
        _check_it_groups(model, grouping)
    elif grouping != Grouping(group_size=None):
        raise ConfigError(
            f"group_size=None is full attention, without groups: leave out shift={shift}, sink_tokens={sink_tokens} "
            f"and full_attention_interval={full_attention_interval}, or give the size of groups"
        )
    set_grouping(model, grouping)


def _check_it_groups(model: torch.nn.Module, grouping: Grouping) -> None:
    loaded = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
    if loaded is None:
        raise ConfigError(f"set_group_size takes a transformers model, wrapped or not, got {type(model).__name__}")
    attention = loaded.config.get_text_config()._attn_implementation
    if attention != "s2":
        raise ConfigError(
            f'{type(loaded).__name__} uses the attention "{attention}", which has no groups: load it with '
            'attn_implementation="s2", or call model.set_attn_implementation("s2") before set_group_size'
        )
    if probe.knows_layers(loaded.config.get_text_config()):
        return
    try:
        layers = probe.layers_of(loaded)
    except probe.CannotTellError:  # the first training step will tell
        return
    probe.tell_layers(loaded.config.get_text_config(), layers.grouped, layers.windowed, grouping)


def _s2_mask(**arguments: Any) -> DeferredMask | Tensor | None:
    # Below transformers 5.18, `generate` passes its mask for a static cache to the model, which requests one again.
    if isinstance(arguments["attention_mask"], DeferredMask):
        return arguments["attention_mask"]
    if arguments["q_length"] != arguments["kv_length"]:  # a KV cache: not training
        return sdpa_mask(**arguments)
    if arguments["attention_mask"] is not None and arguments["attention_mask"].is_meta:  # has no values
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
    """Implement transformers' attention interface: query (B, H, T, D), key and value (B, H_kv, T, D) -> (B, T, H, D).

    Ulysses sequence parallelism passes whole rows of some of the heads, without a mask: rows are then cut where
    `position_ids`, (B, T), restart.
    """
    if unsupported := [name for name in _UNSUPPORTED if interface_arguments.get(name) is not None]:
        raise ConfigError(
            f"{type(module).__name__} needs {', '.join(unsupported)}, which S²-Attn does not implement; "
            + USE_FULL_ATTENTION
        )
    deferred = attention_mask if isinstance(attention_mask, DeferredMask) else None
    is_gathered = attention_mask is None and position_ids is not None and _holds_some_heads(module, query, key)
    if is_gathered:
        assert position_ids is not None
        deferred, cu_seq_lens_q = _mask_of_gathered_row(module, query, interface_arguments.get("sliding_window")), None
    probe.note_call(module, is_grouped=trains_in_groups(module, deferred), softcap=softcap, sinks=s_aux)
    in_segments = deferred is not None and module.training and _trains_in_segments(module, deferred, query, key)
    in_segments |= is_gathered
    is_beyond_sdpa = softcap is not None or s_aux is not None
    if dropout > 0 and (in_segments or is_beyond_sdpa):
        raise ConfigError(
            f"S²-Attn has no attention dropout: set attention_dropout to 0 in the model's config, not {dropout}"
        )
    scores: dict[str, Any] = {"scale": scaling, "softcap": softcap, "sinks": s_aux}
    if in_segments:
        assert deferred is not None
        documents = {"position_ids": position_ids, "cu_seqlens": cu_seq_lens_q}
        output = _attend_in_segments(module, query, key, value, deferred, documents, scores)  # (B, H, T, D)
        return output.transpose(1, 2).contiguous(), None  # (B, T, H, D); contiguous, for models that call `view`
    if module.training and deferred is None:
        raise ConfigError(_why_not_in_segments(module, interface_arguments))
    dense = deferred.dense if deferred is not None else attention_mask
    if dense is not None:  # layers may be spread over devices
        dense = dense.to(query.device)
    if not is_beyond_sdpa:
        return sdpa_attention_forward(
            module, query, key, value, dense, dropout=dropout, scaling=scaling, **interface_arguments
        )
    output = _masked_attention(query, key, value, dense, **scores)  # (B, H, T, D)
    return output.transpose(1, 2), None  # (B, T, H, D)


def trains_in_groups(module: torch.nn.Module, mask: DeferredMask | Tensor | None) -> bool:
    """Return whether a layer with this mask trains with S²-Attn, rather than with the attention it evaluates with."""
    return module.training and isinstance(mask, DeferredMask) and mask.window is None


def _trains_in_segments(module: torch.nn.Module, mask: DeferredMask, query: Tensor, key: Tensor) -> bool:
    """Return whether a training layer attends between cuts: in groups, or within its window and documents.

    Also records which layers have groups, if the model has groups.
    """
    grouping = grouping_of(module) or mask.default_grouping
    if not mask.is_meta and grouping.group_size is not None:
        probe.watch_layer(module, mask, grouping, is_grouped=mask.window is None)
    keys_are_the_row = query.shape[2] == key.shape[2]
    if mask.window is not None:
        return keys_are_the_row and mask.is_cut
    if not keys_are_the_row:
        raise ConfigError(
            f"{type(module).__name__} attends from {query.shape[2]} tokens to {key.shape[2]} others, which S²-Attn "
            f"cannot cut into groups; {USE_FULL_ATTENTION}"
        )
    return True


def _holds_some_heads(module: torch.nn.Module, query: Tensor, key: Tensor) -> bool:
    """Return whether a call without a mask has whole rows but not all heads, as in Ulysses sequence parallelism."""
    config: Any = module.config
    is_row = query.shape[2] == key.shape[2] and bool(getattr(module, "is_causal", True))
    return is_row and dist.is_initialized() and query.shape[1] < config.num_attention_heads


def _mask_of_gathered_row(module: torch.nn.Module, query: Tensor, window: int | None) -> DeferredMask:
    config = module.config
    assert isinstance(config, PreTrainedConfig)
    others = set(getattr(config, "layer_types", None) or ()) - _KINDS_OF_LAYERS_WITHOUT_A_MASK
    if others:
        raise ConfigError(
            f"sequence parallelism drops the layers' masks, but {config.model_type} has layers that need theirs or "
            f"carry a state along the row ({', '.join(sorted(others))}); train it with each row in one process"
        )
    count = config.num_attention_heads // query.shape[1]
    heads = HeadShard(dist.get_rank() % count, count)  # consecutive ranks share a row
    probe.tell_of_gathered_rows(config, heads)
    return DeferredMask.of_gathered_row(config, query, heads=heads, window=window)


def _why_not_in_segments(module: torch.nn.Module, interface_arguments: dict[str, Any]) -> str:
    if not interface_arguments.get("is_causal", getattr(module, "is_causal", True)):  # as in transformers' "sdpa"
        return (
            f"{type(module).__name__} attends in both directions, as image encoders do, but S²-Attn is causal: use it "
            'for the text only, with attn_implementation={"text_config": "s2"}'
        )
    return (
        'while training, attn_implementation="s2" takes whole rows with a (B, T) padding mask: neither a mask of '
        "queries by keys nor a KV cache, nor a part of a row (ring context parallelism; Ulysses is supported: "
        "docs/strategies.md); to generate or evaluate, call model.eval() first"
    )


@torch.compiler.disable  # cut points differ from batch to batch: traced, each batch would recompile
def _attend_in_segments(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: DeferredMask,
    documents: dict[str, Tensor | None],
    scores: dict[str, Any],
) -> Tensor:
    is_grouped = module.training and mask.window is None
    grouping = (grouping_of(module) or mask.default_grouping).of_layer(module) if is_grouped else _DOCUMENTS
    cuts = mask.cuts(query.shape[2], grouping=grouping, **documents)
    if grouping.group_size is not None and not mask.is_meta:
        probe.tell_of_forward(module.config, mask, cuts, grouping)
    return attend_in_segments(query, key, value, cuts, window=mask.window, **scores)


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
    """Attend with softcap and sinks, like the models' own "eager" attention; memory O(B·H·T²)."""
    num_heads, num_tokens = query.shape[1:3]
    if mask is None and num_tokens > 1:
        key, value = key[:, :, :num_tokens], value[:, :, :num_tokens]  # the rest of a static cache is still empty
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


AttentionInterface.register("s2", s2_attention_forward)
AttentionMaskInterface.register("s2", _s2_mask)
