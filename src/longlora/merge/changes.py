"""Determine how an adapter changes each weight of its base, as a table that is small for any model size.

PEFT itself determines where an adapter's parts belong and how they are scaled (rank and alpha patterns, rsLoRA,
transposed layers, fully trained modules): its configuration is applied to a model without weights, whose modules are
then inspected.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import Linear as LoraLinear
from peft.utils.other import ModulesToSaveWrapper
from transformers import PreTrainedConfig

from longlora.models.skeleton import Skeleton, make_skeleton

_PREFIX = "base_model.model."
# Settings for which the update is not just a product of two matrices, or affects other weights.
_OTHER_UPDATES = (
    "use_dora lora_bias target_parameters trainable_token_indices layer_replication alora_invocation_tokens use_qalora "
    "use_bdlora arrow_config kasa_config velora_config monteclora_config"
).split()


class ShardMergeUnsupported(Exception):
    """Raised with the reason why an adapter cannot be merged weight by weight; PEFT then merges it in memory."""


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """The change of one weight W: with two tensors A and B of the adapter, W + s·B·A; with one, that tensor."""

    tensors: tuple[str, ...]
    scaling: float = 1.0  # s: `alpha / r`, or `alpha / √r`
    transposed: bool = False  # whether the layer's weight is (in, out)

    @property
    def is_low_rank(self) -> bool:
        """Whether it is a low-rank update, rather than a replacement."""
        return len(self.tensors) == 2


@dataclass(frozen=True, kw_only=True)
class Changes:
    """An adapter's changes, by the names of the model's weights."""

    by_weight: dict[str, WeightChange]
    model: Skeleton  # the merged model

    @property
    def tied_output(self) -> str | None:
        """The output embedding, if the base ties it to the input embedding."""
        return self.model.output_embedding if self.model.is_tied else None

    @property
    def unties(self) -> bool:
        """Whether the adapter unties the base's tied embeddings."""
        change = self.by_weight.get
        return self.model.is_tied and change(self.model.output_embedding) != change(self.model.input_embedding)


def find_changes(config: PreTrainedConfig, adapter: PeftConfig, tensors: Collection[str]) -> Changes:
    """Determine what an adapter with these tensors changes in a model with this configuration.

    Raises:
        ShardMergeUnsupported: the adapter contains more than low-rank updates and fully trained modules.
    """
    _check_kind(adapter)
    try:
        base = make_skeleton(config)
        with torch.device("meta"):
            # The matrices are read from a file, so they need no initialization; the base may have moved.
            read = replace(adapter, init_lora_weights=False, base_model_name_or_path=None)
            wrapped = get_peft_model(base.model, read)
    except Exception as error:  # an architecture that needs values during construction, or an adapter of another model
        raise ShardMergeUnsupported(f"it cannot be applied to a model without weights: {error}") from error
    by_weight = _read_modules(wrapped, base)
    if base.is_tied and adapter.ensure_weight_tying:
        _join(by_weight, base, tensors)
    used = {tensor for change in by_weight.values() for tensor in change.tensors}
    if missing := sorted(used - set(tensors)):
        raise ShardMergeUnsupported(f"its file lacks {len(missing)} tensors, such as {missing[0]}")
    if spare := sorted(set(tensors) - used - ({_PREFIX + base.output_embedding} if base.is_tied else set())):
        raise ShardMergeUnsupported(
            f"its file has more than low-rank updates and fully trained modules, such as {spare[0]}"
        )
    return Changes(by_weight=by_weight, model=base)


def _check_kind(adapter: PeftConfig) -> None:
    if not isinstance(adapter, LoraConfig):
        raise ShardMergeUnsupported(f"an adapter of the type {adapter.peft_type}")
    for name in _OTHER_UPDATES:
        if getattr(adapter, name, None):  # older PEFT lacks newer settings
            raise ShardMergeUnsupported(f"an adapter with {name}")
    if adapter.bias != "none":
        raise ShardMergeUnsupported(f"an adapter with bias={adapter.bias}")
    if adapter.init_lora_weights not in (True, False, "gaussian"):  # some initializations change the base
        raise ShardMergeUnsupported(f"an adapter with init_lora_weights={adapter.init_lora_weights}")


def _read_modules(wrapped: PeftModel, base: Skeleton) -> dict[str, WeightChange]:
    changes: dict[str, WeightChange] = {}
    for path, module in wrapped.named_modules():
        name = path.removeprefix(_PREFIX)
        if isinstance(module, ModulesToSaveWrapper):
            own = [key for key in base.shapes if key.startswith(f"{name}.")]
            changes |= {key: WeightChange(tensors=(_PREFIX + key,)) for key in own}
        elif isinstance(module, LoraLinear | LoraEmbedding):
            if module.lora_variant:
                raise ShardMergeUnsupported(f"a LoRA variant in {path}")
            is_embedding = isinstance(module, LoraEmbedding)
            parts = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
            changes[f"{name}.weight"] = WeightChange(
                tensors=tuple(f"{path}.{part}" for part in parts),
                scaling=float(module.scaling["default"]),
                transposed=is_embedding or bool(module.fan_in_fan_out),
            )
        elif hasattr(module, "base_layer") and hasattr(module, "scaling"):
            raise ShardMergeUnsupported(f"an update of a {type(module).__name__} in {path}")
    return changes


def _join(by_weight: dict[str, WeightChange], base: Skeleton, tensors: Collection[str]) -> None:
    """Give both tied embeddings the single tensor that PEFT trained for them; the file may contain it twice."""
    embeddings = base.input_embedding, base.output_embedding
    changes = [by_weight[name] for name in embeddings if name in by_weight]
    if any(change.is_low_rank for change in changes):
        raise ShardMergeUnsupported("a low-rank update of embeddings that are kept tied")
    there = [change for change in changes if set(change.tensors) <= set(tensors)]
    if changes:
        by_weight |= dict.fromkeys(embeddings, (there or changes)[0])
