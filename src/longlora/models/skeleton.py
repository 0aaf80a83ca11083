"""A model without weights: the names and shapes to compare weight files with."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from longlora.models.lora import output_is_tied
from longlora.models.positions import without_dynamic_scaling


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A model on "meta"; `input_embedding` and `output_embedding` are the names of the weights."""

    model: PreTrainedModel
    shapes: dict[str, tuple[int, ...]]
    input_embedding: str
    output_embedding: str
    is_tied: bool
    """Whether the output embedding is tied to the input embedding."""

    @property
    def rows(self) -> int:
        """Rows of the input embedding."""
        return self.shapes[self.input_embedding][0]


def make_skeleton(config: PreTrainedConfig) -> Skeleton:
    """Build a model without weights from its configuration."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(without_dynamic_scaling(config))
    return Skeleton(
        model=model,
        shapes={name: tuple(weight.shape) for name, weight in model.state_dict().items()},
        input_embedding=_name_of(model, model.get_input_embeddings()),
        output_embedding=_name_of(model, model.get_output_embeddings()),
        is_tied=output_is_tied(model),
    )


def _name_of(model: PreTrainedModel, wanted: nn.Module | None) -> str:
    return next((f"{name}.weight" for name, module in model.named_modules() if module is wanted), "")
