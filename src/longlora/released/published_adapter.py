"""Combine published LoRA weights, embeddings and norms into one PEFT adapter."""

import logging
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from longlora.errors import CheckpointError
from longlora.models.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from longlora.models.lora import embedding_and_norm_names
from longlora.models.skeleton import Skeleton
from longlora.released.published_folder import TRAINABLE, Published
from longlora.released.published_weights import (
    Shapes,
    alone,
    check_complete,
    check_shapes,
    plain_name,
    read_weights,
)
from longlora.support.files import read_json

logger = logging.getLogger("longlora")

# Settings that the original's adapters never have, and that would change the computation.
_UNKNOWN_SETTINGS = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layers_to_transform")
_NO_WHOLE = (
    f"; they are in {TRAINABLE}, which the original's get_trainable_weights.py extracts from pytorch_model.bin. "
    "Without them the model is clearly worse; --lora-only imports it anyway"
)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The published tensors by plain name: low-rank updates, and unless excluded, embeddings and norms."""

    tensors: dict[str, Tensor]
    config: LoraConfig


def read_parts(published: Published, skeleton: Skeleton, base: str, *, lora_only: bool) -> Parts:
    """Read all parts, and check them against the base for missing and extra tensors.

    One extra row of the embedding is the original's `[PAD]`, which it adds to every tokenizer without a padding token.
    It is never a target and never precedes one, so it is left out, and the adapter fits the base.

    Raises:
        CheckpointError: a part is missing or damaged, or belongs to another base.
    """
    low_rank: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    for file in filter(None, (*published.files, published.trainable)):
        # `pytorch_model.bin` also contains the frozen weights. As in the original, the words may be anywhere in a name.
        holds_frozen = published.kind == "consolidated" and file != published.trainable
        for name, weight in read_weights(file).items():
            plain = plain_name(name, skeleton)
            if ".lora_A." in plain or ".lora_B." in plain:
                low_rank[plain.replace(".default.", ".")] = weight
            elif not holds_frozen or "embed" in name or "norm" in name:
                whole[plain] = weight
    folder, config = published.folder, _config(published.folder, base)
    if not low_rank:
        raise CheckpointError(f"{folder} holds no LoRA weights, although it has {ADAPTER_CONFIG}")
    wanted = _low_rank_shapes(config, skeleton)
    check_shapes(low_rank, wanted, what="LoRA weights", base=base)
    check_complete(low_rank, wanted, what=f"LoRA weights for {base}", folder=folder)
    if lora_only:
        return Parts(tensors=low_rank, config=config)
    output = skeleton.output_embedding
    for name in {skeleton.input_embedding, output} & whole.keys():
        if whole[name].shape[0] == skeleton.rows + 1:
            logger.info("%s: the row of the original's [PAD] is left out", name)
            whole[name] = whole[name][:-1]
    modules = embedding_and_norm_names(skeleton.model)
    # Matched as PEFT does: by name suffix.
    wanted = {n: shape for n, shape in skeleton.shapes.items() if n.rpartition(".")[0].endswith(tuple(modules))}
    check_shapes(whole, wanted | {output: skeleton.shapes[output]}, what="embeddings and norms", base=base)
    check_complete(whole, wanted, what="trained embeddings and norms", folder=folder, hint=_NO_WHOLE)
    if skeleton.is_tied:
        whole[output] = whole[skeleton.input_embedding].clone()  # PEFT writes it twice
    elif output in whole:
        modules.append(output.removesuffix(".weight"))
    config.modules_to_save = modules
    config.ensure_weight_tying = skeleton.is_tied
    return Parts(tensors=low_rank | whole, config=config)


def write_adapter(parts: Parts, directory: Path) -> None:
    """Write the adapter in PEFT's format."""
    tensors = {f"base_model.model.{name}": alone(weight) for name, weight in parts.tensors.items()}
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    parts.config.save_pretrained(directory)


def _config(folder: Path, base: str) -> LoraConfig:
    path = folder / ADAPTER_CONFIG
    values = read_json(path)
    unknown = [name for name in _UNKNOWN_SETTINGS if values.get(name)]
    if unknown or values.get("bias", "none") != "none" or values.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(
            f"{path} is a different kind of adapter from the original's ({', '.join(unknown) or 'type or bias'}); "
            "an ordinary PEFT adapter needs no import; use it directly"
        )
    try:
        # The original's supervised fine-tuning writes a nested list.
        targets = [n for entry in values["target_modules"] for n in ([entry] if isinstance(entry, str) else entry)]
        return LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
            inference_mode=True,
            r=int(values["r"]),
            lora_alpha=values["lora_alpha"],
            lora_dropout=float(values.get("lora_dropout") or 0.0),
            use_rslora=bool(values.get("use_rslora", False)),
            target_modules=targets,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is incomplete: {error!r}") from error


def _low_rank_shapes(config: LoraConfig, skeleton: Skeleton) -> Shapes:
    wanted = {}
    for name, layer in skeleton.model.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in (config.target_modules or ()):
            wanted[f"{name}.lora_A.weight"] = (config.r, layer.in_features)
            wanted[f"{name}.lora_B.weight"] = (layer.out_features, config.r)
    return wanted
