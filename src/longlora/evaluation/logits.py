"""Logits of a window, piece by piece: those of 100,000 tokens over a vocabulary of 128,000 are 50 GB in float32."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

Model: TypeAlias = PreTrainedModel | PeftModel

ROWS_PER_PIECE = 1024
# What a few families (Gemma, Cohere, Granite) do to their logits behind the output layer, by their names for it.
_BEHIND_THE_OUTPUT = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def base_model(model: Model) -> PreTrainedModel:
    """Return the transformers model that an adapter sits on, or the model itself."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def vocabulary_size(model: Model) -> int:
    """Return how many token ids a model knows."""
    return base_model(model).config.get_text_config().vocab_size


def input_device(model: Model) -> torch.device:
    """Return the device for a model's input; of a model that is spread over several, its hooks move it on."""
    device = base_model(model).device
    # Parts that wait outside of the devices for their turn have no device of their own.
    return torch.device("cpu") if device.type == "meta" else device


def last_rows(model: Model, count: int) -> dict[str, int]:
    """Ask for few rows of logits where the model can be asked: those of a long prompt are larger than the model."""
    return (
        {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(base_model(model).forward).parameters else {}
    )


def logits_in_pieces(model: Model, input_ids: Tensor, *, num_rows: int) -> Callable[[int], Iterator[Tensor]]:
    """Read a batch (B, T) and return, for a row of it, the logits that predict its last `num_rows` tokens.

    They come in pieces of at most 1,024 rows, (piece, V) in the model's dtype. Of a long window the hidden states are
    kept, T * hidden size, and the output layer is applied to a piece when it is asked for. Where a model does more to
    its logits than its output layer, or has no such layer, all of them are in memory at once.
    """
    input_ids = input_ids.to(input_device(model))
    if num_rows > ROWS_PER_PIECE and (states := _states_and_output(model, input_ids)) is not None:
        hidden, output = states
        return lambda index: (output(piece) for piece in hidden[index, -num_rows - 1 : -1].split(ROWS_PER_PIECE))
    # The row that predicts a token stands one before it: one more row is asked for, and the last not used.
    rows = last_rows(model, num_rows + 1)
    logits = model(input_ids=input_ids, use_cache=False, **rows).logits[:, -num_rows - 1 : -1]  # (B, num_rows, V)
    return lambda index: iter(logits[index].split(ROWS_PER_PIECE))


def _states_and_output(model: Model, input_ids: Tensor) -> tuple[Tensor, nn.Module] | None:
    """Read a batch once; return the states before the output layer and that layer, if it is all there is after them."""
    base, rows = base_model(model), last_rows(model, 1)
    config = base.config.get_text_config().to_dict()
    decoder, output = base.get_decoder(), base.get_output_embeddings()
    changed = any(config.get(name) is not None for name in _BEHIND_THE_OUTPUT)
    if not rows or output is None or decoder is base or changed:
        return None
    states: list[Tensor] = []

    def keep(_: nn.Module, __: Any, result: Any) -> None:
        states.append(result[0])  # (B, T, hidden size)

    hook = decoder.register_forward_hook(keep)
    try:
        last = model(input_ids=input_ids, use_cache=False, **rows).logits
    finally:
        hook.remove()
    # A family that is not known to change its logits might: the model's own last row must be the output layer's.
    same = len(states) == 1 and torch.allclose(output(states[0][:, -1:]), last, rtol=1e-5, atol=1e-5, equal_nan=True)
    return (states[0], output) if same else None
