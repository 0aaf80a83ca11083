"""LoRA+: low-rank updates with trainable embeddings and norms (the paper, section 3.3), as one PEFT adapter.

Embeddings and norms go through PEFT's `modules_to_save`, so that `adapter_model.safetensors` holds all that was trained
and `PeftModel.from_pretrained` loads it. In Llama-2-7B they are 131.3 of the 139.7 million trained parameters, and they
carry most of the quality (the paper, table 2: perplexity 11.44 without, 8.12 with).
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from longlora.errors import ConfigError

Trainable = Literal["embed", "norm"]

_PEFT_EMBEDDING = "embed_tokens"


def add_adapter(
    model: PreTrainedModel,
    *,
    trainable: Collection[Trainable],
    r: int,
    lora_alpha: float,
    lora_dropout: float,
    target_modules: Literal["attention", "all-linear"] | Sequence[str],
    train_output: bool = False,
) -> PeftModel:
    """Wrap a model in a fresh adapter; what the adapter does not hold is frozen.

    Trained parameters are float32 whatever the model's dtype: at a learning rate of 2e-5 most updates of a bfloat16
    weight would round to nothing. Tied embeddings stay tied.

    Args:
        model: the model, changed in place.
        trainable: what is trained whole beside the low-rank updates: the input embedding, the norms, both or neither.
        r: rank of the updates.
        lora_alpha: an update is multiplied by `lora_alpha / r`.
        lora_dropout: dropout probability on the input of an update.
        target_modules: the linear layers that get an update: those of attention, all, or those whose names end so.
        train_output: train and save the output embedding too, where it is not the input embedding. New tokens need it.

    Raises:
        ConfigError: the model has no linear layer inside an attention module, or none of a given name.
    """
    must_tie = "embed" in trainable and output_is_tied(model)
    whole = _trained_whole(model, trainable)
    if train_output and not output_is_tied(model):
        whole |= _names_of(model, [model.get_output_embeddings()])
    names = _shortest_names(model, whole, before="")
    if must_tie and not any(name.endswith(_PEFT_EMBEDDING) for name in names):
        # PEFT ties the output to a trained embedding only if it finds this name, which Falcon and others do not use; a
        # name that no module has does nothing else.
        names.append(_PEFT_EMBEDDING)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=_targets(model, target_modules),
        modules_to_save=names or None,
        ensure_weight_tying=must_tie,
    )
    adapted = get_peft_model(model, config)
    assert not must_tie or output_is_tied(adapted), "PEFT has untied the embeddings"
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def attention_linear_names(model: nn.Module) -> list[str]:
    """Names of the linear layers that sit directly inside attention modules, as PEFT's `target_modules` takes them.

    Such as `q_proj`; whole names where the last part alone would reach a layer elsewhere.

    Raises:
        ConfigError: there are none.
    """
    found = {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        if "attention" in type(module).__name__.lower()
        for name, child in module.named_children()
        if isinstance(child, nn.Linear)
    }
    if not found:
        raise ConfigError(
            f"no linear layers found in the attention of {type(model).__name__}; use lora.target_modules: all-linear"
        )
    return _shortest_names(model, found, before=".")


def embedding_and_norm_names(model: PreTrainedModel) -> list[str]:
    """Names of the input embedding and of every norm, as PEFT's `modules_to_save` takes them.

    Such as `embed_tokens` and `norm`; whole names where the last part alone would reach another module.
    """
    return _shortest_names(model, _trained_whole(model, ("embed", "norm")), before="")


def output_is_tied(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the output embedding is the input embedding."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def embedding_parameters(model: PreTrainedModel | PeftModel) -> list[nn.Parameter]:
    """The trained parameters of the input and the output embedding, each once."""
    modules = [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]
    found = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return list(found.values())


def trainable_parameters(model: PreTrainedModel | PeftModel) -> dict[str, int]:
    """Count trained parameters by kind: `lora`, `embeddings`, `norms`, `other`, and their sum in `total`."""
    counts = dict.fromkeys(("lora", "embeddings", "norms", "other"), 0)
    for kind, parameter in _trained_by_kind(model):
        counts[kind] += parameter.numel()
    return {**counts, "total": sum(counts.values())}


def num_parameters(model: PreTrainedModel | PeftModel) -> int:
    """Count a model's parameters, tied ones once, without the originals of what is trained whole in their place."""
    if not isinstance(model, PeftModel):
        return model.num_parameters()
    originals = {
        id(parameter): parameter.numel()
        for module in model.modules()
        if isinstance(module, ModulesToSaveWrapper)
        for parameter in module.original_module.parameters()
    }
    # transformers counts weights of 4 bits as what they stand for.
    return model.get_base_model().num_parameters() - sum(originals.values())


def _targets(model: PreTrainedModel, wanted: Literal["attention", "all-linear"] | Sequence[str]) -> str | list[str]:
    if wanted == "all-linear":
        return "all-linear"
    if wanted == "attention":
        return attention_linear_names(model)
    names = list(wanted)
    for name in names:
        reached = [module for path, module in model.named_modules() if path == name or path.endswith(f".{name}")]
        linear = {path.rpartition(".")[2] for path, module in model.named_modules() if isinstance(module, nn.Linear)}
        if not reached or not all(isinstance(module, nn.Linear) for module in reached):
            raise ConfigError(
                f"lora.target_modules: {name!r} names no linear layer of {type(model).__name__}; its linear layers are "
                f"{', '.join(sorted(linear))}"
            )
        if model.get_output_embeddings() in reached and output_is_tied(model):
            raise ConfigError(
                f"lora.target_modules: {name!r} is the input embedding as well in {type(model).__name__}; train it "
                "with lora.trainable: [embed]"
            )
    return names


def _trained_whole(model: PreTrainedModel, kinds: Collection[Trainable]) -> set[str]:
    """Whole names of the modules of those kinds."""
    modules = [module for module in model.modules() if _is_norm(module)] if "norm" in kinds else []
    if "embed" in kinds:
        modules.append(model.get_input_embeddings())
    return _names_of(model, modules)


def _names_of(model: nn.Module, modules: Collection[nn.Module]) -> set[str]:
    wanted = {id(module) for module in modules}
    return {name for name, module in model.named_modules() if id(module) in wanted}


def _shortest_names(model: nn.Module, wanted: set[str], *, before: str) -> list[str]:
    """Name modules by the last part of their names, or by whole names where that would reach other modules as well.

    PEFT takes a name for every module whose own name ends with it: after a point for `target_modules` (before="."),
    after anything for `modules_to_save` (before=""), where `norm` reaches `input_layernorm` too.
    """
    names: set[str] = set()
    for last in {name.rpartition(".")[2] for name in wanted}:
        reached = {name for name, _ in model.named_modules() if name == last or name.endswith(before + last)}
        names |= {last} if reached <= wanted else {name for name in wanted if name.rpartition(".")[2] == last}
    return sorted(names)


def _trained_by_kind(model: PreTrainedModel | PeftModel) -> Iterator[tuple[str, nn.Parameter]]:
    embeddings = {id(parameter) for parameter in embedding_parameters(model)}
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if "lora_" in f"{module_name}.{name}":
                yield "lora", parameter
            elif id(parameter) in embeddings:
                yield "embeddings", parameter
            elif _is_norm(module):
                yield "norms", parameter
            else:
                yield "other", parameter


def _is_norm(module: nn.Module) -> bool:
    """Tell a normalisation layer: named one, with a scale of its own, and no layer that only has norm in its name."""
    return (
        "norm" in type(module).__name__.lower()
        and isinstance(module._parameters.get("weight"), torch.Tensor)
        and not isinstance(module, nn.Linear | nn.Embedding)
        and next(module.children(), None) is None
    )
