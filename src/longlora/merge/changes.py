"""What an adapter makes of each weight of its base, as a table that is small whatever the size of the model.

PEFT itself says where an adapter's parts go and how they are scaled (patterns of ranks and alphas, rsLoRA, transposed
layers, copies of whole modules): the adapter's configuration is put on a model without weights, and its modules read.
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
# Settings with which the update is more than a product of two matrices, or reaches other weights.
_OTHER_UPDATES = (
    "use_dora lora_bias target_parameters trainable_token_indices layer_replication alora_invocation_tokens use_qalora "
    "use_bdlora arrow_config kasa_config velora_config monteclora_config"
).split()


class OtherWay(Exception):
    """Why an adapter cannot be merged weight by weight; PEFT's own merging, in memory, is asked then."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Of the adapter's tensors A and B: W + s·B·A. Of a single one: that in the weight's place."""

    tensors: tuple[str, ...]
    scaling: float = 1.0  # `alpha / r`, or `alpha / √r`
    transposed: bool = False  # the layer keeps its weight as (in, out)

    @property
    def is_low_rank(self) -> bool:
        """Whether it adds to the weight."""
        return len(self.tensors) == 2


@dataclass(frozen=True, kw_only=True)
class Changes:
    """An adapter's changes by the names that the model gives its weights."""

    by_weight: dict[str, Change]
    shapes: dict[str, tuple[int, ...]]  # of every weight of the merged model
    architecture: str  # the model's class
    input_embedding: str
    output_embedding: str | None  # where the base ties it to the input's

    @property
    def unties(self) -> bool:
        """Whether the adapter makes two weights of a tied one."""
        change = self.by_weight.get
        return self.output_embedding is not None and change(self.output_embedding) != change(self.input_embedding)


def find_changes(config: PreTrainedConfig, adapter: PeftConfig, tensors: Collection[str]) -> Changes:
    """Tell what an adapter with these tensors changes in a model of this configuration.

    Raises:
        OtherWay: it does something else than low-rank updates and whole modules.
    """
    _check_kind(adapter)
    try:
        base = make_skeleton(config)
        with torch.device("meta"):
            # Matrices to be read from a file need no beginning, and the base may have moved since.
            read = replace(adapter, init_lora_weights=False, base_model_name_or_path=None)
            wrapped = get_peft_model(base.model, read)
    except Exception as error:  # architectures that look at values while they are built, and adapters of other models
        raise OtherWay(f"a model without weights cannot be made of it: {error}") from error
    by_weight = _read_modules(wrapped, base)
    if base.is_tied and adapter.ensure_weight_tying:
        _join(by_weight, base, tensors)
    used = {tensor for change in by_weight.values() for tensor in change.tensors}
    if missing := sorted(used - set(tensors)):
        raise OtherWay(f"its file lacks {len(missing)} tensors, such as {missing[0]}")
    if spare := sorted(set(tensors) - used - ({_PREFIX + base.output_embedding} if base.is_tied else set())):
        raise OtherWay(f"its file holds more than low-rank updates and whole modules, such as {spare[0]}")
    return Changes(
        by_weight=by_weight,
        shapes=base.shapes,
        architecture=type(base.model).__name__,
        input_embedding=base.input_embedding,
        output_embedding=base.output_embedding if base.is_tied else None,
    )


def _check_kind(adapter: PeftConfig) -> None:
    if not isinstance(adapter, LoraConfig):
        raise OtherWay(f"an adapter of the type {adapter.peft_type}")
    for name in _OTHER_UPDATES:
        if getattr(adapter, name, None):  # newer ones are unknown to older PEFT
            raise OtherWay(f"an adapter with {name}")
    if adapter.bias != "none":
        raise OtherWay(f"an adapter with bias={adapter.bias}")
    if adapter.init_lora_weights not in (True, False, "gaussian"):  # some begin by changing the base
        raise OtherWay(f"an adapter with init_lora_weights={adapter.init_lora_weights}")


def _read_modules(wrapped: PeftModel, base: Skeleton) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for path, module in wrapped.named_modules():
        name = path.removeprefix(_PREFIX)
        if isinstance(module, ModulesToSaveWrapper):
            own = [key for key in base.shapes if key.startswith(f"{name}.")]
            changes |= {key: Change(tensors=(_PREFIX + key,)) for key in own}
        elif isinstance(module, LoraLinear | LoraEmbedding):
            if module.lora_variant:
                raise OtherWay(f"an update of its own kind in {path}")
            is_embedding = isinstance(module, LoraEmbedding)
            parts = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A.weight", "lora_B.weight")
            changes[f"{name}.weight"] = Change(
                tensors=tuple(f"{path}.{part}" for part in parts),
                scaling=float(module.scaling["default"]),
                transposed=is_embedding or bool(module.fan_in_fan_out),
            )
        elif hasattr(module, "base_layer") and hasattr(module, "scaling"):
            raise OtherWay(f"an update of a {type(module).__name__} in {path}")
    return changes


def _join(by_weight: dict[str, Change], base: Skeleton, tensors: Collection[str]) -> None:
    """Let both embeddings take the one tensor of theirs that PEFT trained; its file may hold it twice."""
    embeddings = base.input_embedding, base.output_embedding
    changes = [by_weight[name] for name in embeddings if name in by_weight]
    if any(change.is_low_rank for change in changes):
        raise OtherWay("a low-rank update of embeddings that are kept tied")
    there = [change for change in changes if set(change.tensors) <= set(tensors)]
    if changes:
        by_weight |= dict.fromkeys(embeddings, (there or changes)[0])
