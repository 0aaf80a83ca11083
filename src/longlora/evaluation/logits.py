"""Logits of a window in pieces: for 100,000 tokens and a vocabulary of 128,000, all of them take 50 GB in float32."""

import inspect
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from longlora.models.generation import transformers_model

Model: TypeAlias = PreTrainedModel | PeftModel

ROWS_PER_PIECE = 1024
# Config entries of families that transform logits after the output layer (Gemma, Cohere, Granite).
_BEHIND_THE_OUTPUT = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def vocabulary_size(model: Model) -> int:
    """Return the number of token ids in a model's vocabulary."""
    return transformers_model(model).config.get_text_config().vocab_size


def input_device(model: Model) -> torch.device:
    """Return the device for a model's input; if the model is spread over several, its hooks move the input on."""
    device = transformers_model(model).device
    # Offloaded parameters are on the meta device.
    return torch.device("cpu") if device.type == "meta" else device


def last_rows(model: Model, count: int) -> dict[str, int]:
    """Return the arguments that limit logits to the last `count` rows, if the model's forward supports it.

    All logits of a long prompt take more memory than the model.
    """
    supported = inspect.signature(transformers_model(model).forward).parameters
    return {"logits_to_keep": count} if "logits_to_keep" in supported else {}


def logits_in_pieces(model: Model, input_ids: Tensor, *, num_rows: int) -> Callable[[int], Iterator[Tensor]]:
    """Run a batch (B, T); return a function from a row's index to the logits that predict its last `num_rows` tokens.

    They come in pieces of at most 1,024 rows, (piece, V) in the model's dtype. For a long window, the hidden states are
    kept (T * hidden size), and the output layer is applied piece by piece, on demand. If a model has no separate output
    layer, or transforms the logits after it, all logits are in memory at once.
    """
    input_ids = input_ids.to(input_device(model))
    if num_rows > ROWS_PER_PIECE and (states := _states_and_output(model, input_ids)) is not None:
        hidden, output = states
        return lambda index: (output(piece) for piece in hidden[index, -num_rows - 1 : -1].split(ROWS_PER_PIECE))
    # A token is predicted by the row before it: request one more row, and drop the last.
    rows = last_rows(model, num_rows + 1)
    logits = model(input_ids=input_ids, use_cache=False, **rows).logits[:, -num_rows - 1 : -1]  # (B, num_rows, V)
    return lambda index: iter(logits[index].split(ROWS_PER_PIECE))


def _states_and_output(model: Model, input_ids: Tensor) -> tuple[Tensor, nn.Module] | None:
    """Return the hidden states before the output layer and that layer, if nothing else transforms the logits."""
    base, rows = transformers_model(model), last_rows(model, 1)
    config = base.config.get_text_config().to_dict()
    decoder, output = base.get_decoder(), base.get_output_embeddings()
    changed = any(config.get(name) is not None for name in _BEHIND_THE_OUTPUT)
    if not rows or output is None or decoder is base or changed:
        return None
    states: list[Tensor] = []  # (B, T, hidden size)
    hook = decoder.register_forward_hook(lambda _, __, result: states.append(result[0]))
    try:
        last = model(input_ids=input_ids, use_cache=False, **rows).logits
    finally:
        hook.remove()
    # An unknown family might transform its logits too: compare the model's own last row with the output layer's.
    same = len(states) == 1 and torch.allclose(output(states[0][:, -1:]), last, rtol=1e-5, atol=1e-5, equal_nan=True)
    return (states[0], output) if same else None
