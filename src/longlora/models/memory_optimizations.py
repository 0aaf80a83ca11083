"""Memory optimizations: tiled feed-forward layers, chunked loss, and a 4-bit base.

What a row of T tokens costs beyond the weights, in elements of the compute dtype, and how it is reduced:

    logits         T × vocabulary, about four times → chunked loss (TRL's; verified here for each architecture)
    feed-forward   T × intermediate_size, about four times per layer → tiles of `num_tokens`
    layers' inputs T × hidden_size per layer, with checkpointing → offloaded to the host (TRL's `activation_offloading`)
"""

import copy
import inspect
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeModelOutputWithPast
from trl.trainer import add_fused_lm_head

from longlora.errors import ConfigError
from longlora.models.positions import without_dynamic_scaling
from longlora.support.machine import require_package

_FEED_FORWARD = re.compile(r"^(?!.*(attention|norm)).*(mlp|feed_?forward|ffn|moe|experts)", re.IGNORECASE)
_ROUTING = re.compile(r"moe|experts?$|router", re.IGNORECASE)

_PROBE_TOKENS, _PROBE_WIDTH = 12, 4
_PROBE_TOLERANCE = 1e-5  # of the loss, in float32


def keep_hidden_states_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Keep the hidden states between layers in `dtype`, even if the embedding is trained in float32, in place.

    Autocast does not cast additions, so a float32 embedding would make the residual stream float32, and so the inputs
    that checkpointing saves for each layer: twice the memory, for a precision that the model was not pretrained with.
    The embedding itself, its gradient and its updates stay float32.
    """
    embeddings: nn.Module = model.get_input_embeddings()
    embeddings.register_forward_hook(partial(_cast, dtype=dtype))  # a partial, since the module must stay picklable


def _cast(module: nn.Module, inputs: Any, output: Tensor, *, dtype: torch.dtype) -> Tensor:
    return output.to(dtype)


def tile_feed_forward(model: nn.Module, *, num_tokens: int) -> list[str]:
    """Compute each feed-forward layer in tiles of tokens, in place, and return the layers' names.

    A feed-forward layer processes each token independently, so only the order of rounding in its weights' gradients
    changes. Only one tile's activations are in memory at a time: each tile is recomputed in the backward pass, which
    costs one more forward pass of the feed-forward. Names, weights and saved files do not change; an adapter may be
    added before or after.

    Args:
        model: the model, or the adapter around it.
        num_tokens: tokens per tile; small tiles save more memory but underuse a GPU.

    Raises:
        ConfigError: the layers are mixtures of experts, or none is found whose only input is a row.
    """
    found = {
        f"{path}.{name}": child
        for path, layer in model.named_modules()
        if isinstance(layer, GradientCheckpointingLayer)
        for name, child in layer.named_children()
        if _FEED_FORWARD.search(type(child).__name__)
    }
    if not found:
        raise ConfigError(
            f"tiled_mlp={num_tokens}: no feed-forward layers found in {type(model).__name__}; leave tiled_mlp out"
        )
    for name, module in found.items():
        if reason := _why_not_in_tiles(module):
            raise ConfigError(f"tiled_mlp={num_tokens} cannot be applied: {name} {reason}; leave tiled_mlp out")
    for module in found.values():
        module.forward = _InTiles(module.forward, num_tokens)
    return list(found)


class _InTiles:
    """The forward pass of one feed-forward layer, tile by tile."""

    def __init__(self, forward: Callable[[Tensor], Tensor], num_tokens: int) -> None:
        self._forward = forward
        self._num_tokens = num_tokens

    def __call__(self, hidden_states: Tensor) -> Tensor:
        tiles = hidden_states.split(self._num_tokens, dim=-2)  # each (B, num_tokens or fewer, hidden)
        if len(tiles) == 1:
            return self._forward(hidden_states)
        # One graph for all tiles, so that each weight gets its gradient once, as data parallelism expects.
        return torch.cat([checkpoint(self._forward, tile, use_reentrant=False) for tile in tiles], dim=-2)


def _why_not_in_tiles(module: nn.Module) -> str | None:
    names = [(type(child).__name__, path.rpartition(".")[2]) for path, child in module.named_modules()]
    if any(_ROUTING.search(kind) or _ROUTING.fullmatch(name) for kind, name in names):
        return (
            f"({type(module).__name__}) routes tokens among experts, each of which already processes only a part of "
            "the row, and routers are balanced over the whole row"
        )
    if any("conv" in kind.lower() and kind != "Conv1D" for kind, _ in names):  # Conv1D is GPT-2's linear layer
        return f"({type(module).__name__}) mixes tokens"
    if len(inspect.signature(module.forward).parameters) != 1:
        return f"({type(module).__name__}) has more inputs than a row"
    return None


def why_not_in_pieces(config: PreTrainedConfig) -> str | None:
    """Return why the loss needs the logits of whole rows, or None if TRL's chunked loss is equivalent.

    TRL computes the loss from the output layer itself, and so must know how a model transforms its logits: scaling
    (Cohere, Granite), caps (Gemma 2), or something else. Here both losses are computed from random hidden states, with
    the model's settings and its own code after the last layer, but without layers and weights, in a second or two.
    """
    try:
        own, in_pieces = _losses_from_random_states(config)
    except Exception as error:  # an architecture may fail in any way without its layers
        return f"{config.model_type} cannot be checked ({type(error).__name__}: {error})"
    if abs(own - in_pieces) > _PROBE_TOLERANCE * max(1.0, abs(own)):
        return f"{config.model_type} computes its loss differently: {own:.6g}, and {in_pieces:.6g} in chunks"
    return None


def _losses_from_random_states(config: PreTrainedConfig) -> tuple[float, float]:
    model = _without_layers(config)
    random = torch.Generator().manual_seed(0)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=random)
    states = 4 * torch.randn(1, _PROBE_TOKENS, _PROBE_WIDTH, generator=random)  # large enough for caps to take effect
    layers = model.base_model
    if layers is model:
        raise LookupError("its layers are not in one module, as TRL assumes")
    layers.forward = lambda *_, **__: MoeModelOutputWithPast(last_hidden_state=states)
    tokens = torch.randint(head.out_features, (1, _PROBE_TOKENS), generator=random)
    labels = tokens.masked_fill(torch.arange(_PROBE_TOKENS) % 5 == 0, -100)
    with torch.no_grad():
        own = model(input_ids=tokens, labels=labels, use_cache=False).loss
        add_fused_lm_head(model)
        in_pieces = model(input_ids=tokens, labels=labels, use_cache=False, fused_lm_head=True).loss
    return float(own), float(in_pieces)


def _without_layers(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the model on "meta"; only a narrow output layer has values."""
    config = without_dynamic_scaling(copy.deepcopy(config))
    config.__dict__.pop("quantization_config", None)
    config.get_text_config().output_router_logits = False  # the auxiliary loss of experts is added to both alike
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    head = model.get_output_embeddings()
    model.set_output_embeddings(nn.Linear(_PROBE_WIDTH, head.out_features, bias=head.bias is not None))
    return model.train()


def nf4_arguments(dtype: torch.dtype) -> dict[str, Any]:
    """Return arguments of transformers' `from_pretrained` for 4-bit linear layers: NF4 with 8-bit scales.

    4.127 bits per weight (Dettmers et al., QLoRA, arXiv 2305.14314, sections 2 and 3). Each layer is dequantized to
    `dtype` when it is used. Embeddings, norms and the output layer stay in `dtype`. Weights are loaded directly on the
    device, which quantizes them.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    require_package("bitsandbytes", wanted_by="quantization=nf4")
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": quantization, "device_map": {"": device}}
