"""LoRA+: low-rank updates with trainable embeddings and norms (the paper, section 3.3), as one PEFT adapter.

Embeddings and norms are PEFT's `modules_to_save`, so `adapter_model.safetensors` contains everything trained, and
`PeftModel.from_pretrained` loads it. In Llama-2-7B they are 131.3 of the 139.7 million trained parameters and account
for most of the quality (the paper, table 2: perplexity 11.44 without, 8.12 with).
"""

from collections.abc import Collection, Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from longlora.errors import ConfigError
from longlora.support.choices import LoraTargets, Trainable

_PEFT_EMBEDDING = "embed_tokens"


def add_adapter(
    model: PreTrainedModel,
    *,
    trainable: Collection[Trainable],
    r: int,
    lora_alpha: float,
    lora_dropout: float,
    target_modules: LoraTargets | Sequence[str],
    train_output: bool = False,
) -> PeftModel:
    """Wrap a model in a new adapter, and freeze all other parameters.

    Trained parameters are float32 regardless of the model's dtype: at a learning rate of 2e-5, most updates of a
    bfloat16 weight would be rounded away. Tied embeddings stay tied.

    Args:
        model: the model, changed in place.
        trainable: fully trained modules besides the low-rank updates: the input embedding, the norms, both or neither.
        r: rank of the updates.
        lora_alpha: updates are scaled by `lora_alpha / r`.
        lora_dropout: dropout probability on the input of an update.
        target_modules: the linear layers that get an update: those of attention, all, or those with the given suffixes.
        train_output: also train and save the output embedding, if it is not tied to the input. New tokens need it.

    Raises:
        ConfigError: the model has no linear layer inside an attention module, or none of a given name.
    """
    must_tie = "embed" in trainable and output_is_tied(model)
    whole = _trained_whole(model, trainable)
    if train_output and not output_is_tied(model):
        whole |= _names_of(model, [model.get_output_embeddings()])
    names = _shortest_names(model, whole, before="")
    if must_tie and not any(name.endswith(_PEFT_EMBEDDING) for name in names):
        # PEFT ties the output to a trained embedding only if it finds this name, which Falcon and others do not use.
        # If no module has the name, it has no other effect.
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
    """Return the names of the linear layers directly inside attention modules, for PEFT's `target_modules`.

    The last part of each name, such as `q_proj`, or the full name if the last part would match other layers too.

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
    """Return the names of the input embedding and of every norm, for PEFT's `modules_to_save`.

    The last part of each name, such as `embed_tokens`, or the full name if the last part would match other modules too.
    """
    return _shortest_names(model, _trained_whole(model, ("embed", "norm")), before="")


def output_is_tied(model: PreTrainedModel | PeftModel) -> bool:
    """Return whether the output embedding is tied to the input embedding."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def embedding_parameters(model: PreTrainedModel | PeftModel) -> list[nn.Parameter]:
    """Return the trained parameters of the input and output embeddings, without duplicates."""
    modules = filter(None, (model.get_input_embeddings(), model.get_output_embeddings()))
    return list(dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad))


def trainable_parameters(model: PreTrainedModel | PeftModel) -> dict[str, int]:
    """Count trained parameters by kind (`lora`, `embeddings`, `norms`, `other`) and in `total`."""
    counts = dict.fromkeys(("lora", "embeddings", "norms", "other"), 0)
    embeddings = {id(parameter) for parameter in embedding_parameters(model)}
    for name, parameter in model.named_parameters():  # tied ones once
        if parameter.requires_grad:
            is_norm = _is_norm(model.get_submodule(name.rpartition(".")[0]))
            other = "embeddings" if id(parameter) in embeddings else "norms" if is_norm else "other"
            counts["lora" if "lora_" in name else other] += parameter.numel()
    return {**counts, "total": sum(counts.values())}


def num_parameters(model: PreTrainedModel | PeftModel) -> int:
    """Count a model's parameters: tied ones once, and fully trained modules without their frozen originals."""
    if not isinstance(model, PeftModel):
        return model.num_parameters()
    originals = {
        id(parameter): parameter.numel()
        for module in model.modules()
        if isinstance(module, ModulesToSaveWrapper)
        for parameter in module.original_module.parameters()
    }
    # transformers counts the parameters of 4-bit weights unpacked.
    return model.get_base_model().num_parameters() - sum(originals.values())


def _targets(model: PreTrainedModel, wanted: LoraTargets | Sequence[str]) -> str | list[str]:
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
                f"lora.target_modules: {name!r} is tied to the input embedding in {type(model).__name__}; train it "
                "with lora.trainable: [embed]"
            )
    return names


def _trained_whole(model: PreTrainedModel, kinds: Collection[Trainable]) -> set[str]:
    """Return the full names of the modules of these kinds."""
    modules = [module for module in model.modules() if _is_norm(module)] if "norm" in kinds else []
    if "embed" in kinds:
        modules.append(model.get_input_embeddings())
    return _names_of(model, modules)


def _names_of(model: nn.Module, modules: Collection[nn.Module]) -> set[str]:
    wanted = {id(module) for module in modules}
    return {name for name, module in model.named_modules() if id(module) in wanted}


def _shortest_names(model: nn.Module, wanted: set[str], *, before: str) -> list[str]:
    """Shorten names to their last part, unless that would also match other modules.

    PEFT matches modules by name suffix: after a dot for `target_modules` (before="."), after anything for
    `modules_to_save` (before=""), where `norm` also matches `input_layernorm`.
    """
    names: set[str] = set()
    for last in {name.rpartition(".")[2] for name in wanted}:
        reached = {name for name, _ in model.named_modules() if name == last or name.endswith(before + last)}
        names |= {last} if reached <= wanted else {name for name in wanted if name.rpartition(".")[2] == last}
    return sorted(names)


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalization layer: by its class name, with a weight of its own, and a leaf."""
    return (
        "norm" in type(module).__name__.lower()
        and isinstance(module._parameters.get("weight"), torch.Tensor)
        and not isinstance(module, nn.Linear | nn.Embedding)
        and next(module.children(), None) is None
    )
