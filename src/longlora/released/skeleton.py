"""The base of published weights, without its weights: names and shapes to hold them against."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from longlora.errors import CheckpointError
from longlora.models.lora import embedding_and_norm_names, output_is_tied
from longlora.models.positions import without_dynamic_scaling

_PEFT_PREFIX = "base_model.model."
_OLDER_OUTPUT = "embed_out."  # GPT-NeoX before transformers 5


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A model on "meta", and what the original trains whole in it."""

    model: PreTrainedModel
    shapes: dict[str, tuple[int, ...]]
    modules_to_save: list[str]
    """Embedding and norms, as PEFT is told."""

    whole: frozenset[str]
    """Names of their weights."""

    input_embedding: str
    output_embedding: str
    is_tied: bool

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        return self.shapes[self.input_embedding][0]


def make_skeleton(config: PreTrainedConfig) -> Skeleton:
    """Build a model of this configuration without weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(without_dynamic_scaling(config))
    names = embedding_and_norm_names(model)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    # As PEFT matches them: by how a module's name ends.
    modules = {name for name, _ in model.named_modules() if name.endswith(tuple(names))}
    return Skeleton(
        model=model,
        shapes=shapes,
        modules_to_save=names,
        whole=frozenset(name for name in shapes if name.rpartition(".")[0] in modules),
        input_embedding=_name_of(model, model.get_input_embeddings()),
        output_embedding=_name_of(model, model.get_output_embeddings()),
        is_tied=output_is_tied(model),
    )


def plain_name(name: str, skeleton: Skeleton) -> str:
    """Strip what PEFT, DeepSpeed and older versions put into the name of a weight."""
    name = name.removeprefix("module.").removeprefix(_PEFT_PREFIX).replace(".modules_to_save.default.", ".")
    if name.startswith(_OLDER_OUTPUT) and name not in skeleton.shapes:
        return skeleton.output_embedding
    return name


def check_shape(name: str, found: torch.Tensor, skeleton: Skeleton, base: str) -> None:
    """Hold a weight against the base's of the same name.

    Raises:
        CheckpointError: the base has none of that name, or of another shape.
    """
    if name not in skeleton.shapes:
        raise CheckpointError(
            f"the published weights hold {name}, which {base} does not have: they belong to another base; say --base"
        )
    if tuple(found.shape) != skeleton.shapes[name]:
        raise CheckpointError(
            f"{name} has shape {tuple(found.shape)} in the published weights and {skeleton.shapes[name]} in {base}: "
            "they belong to another base; say --base"
        )


def _name_of(model: PreTrainedModel, wanted: nn.Module | None) -> str:
    return next((f"{name}.weight" for name, module in model.named_modules() if module is wanted), "")
