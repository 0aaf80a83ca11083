"""Less memory for the same numbers: the feed-forward in tiles, the loss in pieces; and a base of 4 bits for less still.

What a row of T tokens costs beside the weights, in bytes of the compute dtype, and what is done about it:

    logits         T × vocabulary, some four times     → the loss in pieces (TRL's; proven here for each architecture)
    feed-forward   T × intermediate_size, some four times a layer → in tiles of `num_tokens`
    layers' inputs T × hidden_size a layer, with checkpointing → to the host (TRL's `activation_offloading`)
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
from longlora.support.packages import require_package

_FEED_FORWARD = re.compile(r"^(?!.*(attention|norm)).*(mlp|feed_?forward|ffn|moe|experts)", re.IGNORECASE)
_ROUTING = re.compile(r"moe|experts?$|router", re.IGNORECASE)

_PROBE_TOKENS, _PROBE_WIDTH = 12, 4
_PROBE_TOLERANCE = 1e-5  # of the loss, in float32


def keep_hidden_states_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Let the hidden states between layers be of `dtype` where the embedding is trained in float32, in place.

    Autocast leaves additions as they come, so that a float32 embedding would make the sum of all layers float32, and
    with it what checkpointing keeps of each layer: twice the memory for a precision that the model was not pretrained
    with. The embedding itself, its gradient and its updates stay float32.
    """
    embeddings: nn.Module = model.get_input_embeddings()
    embeddings.register_forward_hook(partial(_cast, dtype=dtype))  # picklable, as the module must be


def _cast(module: nn.Module, inputs: Any, output: Tensor, *, dtype: torch.dtype) -> Tensor:
    return output.to(dtype)


def tile_feed_forward(model: nn.Module, *, num_tokens: int) -> list[str]:
    """Send a row through each feed-forward layer in tiles of tokens, in place, and return the layers' names.

    A feed-forward layer looks at one token at a time, so nothing changes but the order of rounding in the gradients of
    its weights. Only one tile's activations exist at a time: each is computed again in the backward pass, which costs
    one more forward pass of the feed-forward. Names, weights and what is saved stay as they are; an adapter may be put
    on before or after.

    Args:
        model: the model, or the adapter around it.
        num_tokens: tokens of a tile; small ones save more and leave a GPU idle.

    Raises:
        ConfigError: the layers are mixtures of experts, or none is found that takes a row and nothing else.
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
            raise ConfigError(f"tiled_mlp={num_tokens} cannot be followed: {name} {reason}; leave tiled_mlp out")
    for module in found.values():
        module.forward = _InTiles(module.forward, num_tokens)
    return list(found)


class _InTiles:
    """The forward pass of one feed-forward layer, a tile at a time."""

    def __init__(self, forward: Callable[[Tensor], Tensor], num_tokens: int) -> None:
        self._forward = forward
        self._num_tokens = num_tokens

    def __call__(self, hidden_states: Tensor) -> Tensor:
        tiles = hidden_states.split(self._num_tokens, dim=-2)  # each (B, num_tokens or fewer, hidden)
        if len(tiles) == 1:
            return self._forward(hidden_states)
        # One graph for all tiles, so that each weight's gradient arrives once, as data parallelism expects it.
        return torch.cat([checkpoint(self._forward, tile, use_reentrant=False) for tile in tiles], dim=-2)


def _why_not_in_tiles(module: nn.Module) -> str | None:
    names = [(type(child).__name__, path.rpartition(".")[2]) for path, child in module.named_modules()]
    if any(_ROUTING.search(kind) or _ROUTING.fullmatch(name) for kind, name in names):
        return (
            f"({type(module).__name__}) routes tokens among experts, each of which holds its own part of the row "
            "already, and the routers' balance is a matter of the whole row"
        )
    if any("conv" in kind.lower() and kind != "Conv1D" for kind, _ in names):  # Conv1D is GPT-2's linear layer
        return f"({type(module).__name__}) mixes tokens"
    if len(inspect.signature(module.forward).parameters) != 1:
        return f"({type(module).__name__}) takes more than a row"
    return None


def why_not_in_pieces(config: PreTrainedConfig) -> str | None:
    """Say why the loss must be computed from the logits of whole rows; None where TRL's loss in pieces is the same.

    TRL computes the loss of an output layer by itself, and so has to know what a model does to its logits: scales
    (Cohere, Granite), caps (Gemma 2), or something of its own. Here both losses are computed from random hidden states
    with the model's settings and its own code after the last layer, but without layers and weights: a second or two.
    """
    try:
        own, in_pieces = _losses_from_random_states(config)
    except Exception as error:  # whatever an architecture does without its layers
        return f"{config.model_type} does not let itself be asked ({type(error).__name__}: {error})"
    if abs(own - in_pieces) > _PROBE_TOLERANCE * max(1.0, abs(own)):
        return f"{config.model_type} has a loss of its own: {own:.6g} where the pieces give {in_pieces:.6g}"
    return None


def _losses_from_random_states(config: PreTrainedConfig) -> tuple[float, float]:
    model = _without_layers(config)
    random = torch.Generator().manual_seed(0)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=random)
    states = 4 * torch.randn(1, _PROBE_TOKENS, _PROBE_WIDTH, generator=random)  # logits that caps and scales change
    layers = model.base_model
    if layers is model:
        raise LookupError("its layers are not in one module, as TRL takes them to be")
    layers.forward = lambda *_, **__: MoeModelOutputWithPast(last_hidden_state=states)
    tokens = torch.randint(head.out_features, (1, _PROBE_TOKENS), generator=random)
    labels = tokens.masked_fill(torch.arange(_PROBE_TOKENS) % 5 == 0, -100)
    with torch.no_grad():
        own = model(input_ids=tokens, labels=labels, use_cache=False).loss
        add_fused_lm_head(model)
        in_pieces = model(input_ids=tokens, labels=labels, use_cache=False, fused_lm_head=True).loss
    return float(own), float(in_pieces)


def _without_layers(config: PreTrainedConfig) -> PreTrainedModel:
    """Make the model on "meta", with an output layer of few columns as the only real thing."""
    config = without_dynamic_scaling(copy.deepcopy(config))
    config.__dict__.pop("quantization_config", None)
    config.get_text_config().output_router_logits = False  # the experts' balance is added to either loss by itself
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    head = model.get_output_embeddings()
    model.set_output_embeddings(nn.Linear(_PROBE_WIDTH, head.out_features, bias=head.bias is not None))
    return model.train()


def nf4_arguments(dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of transformers' `from_pretrained` for linear layers in 4 bits: NF4, its scales in 8 bits.

    (Dettmers et al., QLoRA, arXiv 2305.14314, sections 2 and 3; 4.127 bits a weight.) Each layer is unpacked to `dtype`
    as it is used. Embeddings, norms and the output layer stay in `dtype`. The weights go to the device at once: packing
    happens there.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    require_package("bitsandbytes", wanted_by="quantization=nf4")
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": quantization, "device_map": {"": device}}
