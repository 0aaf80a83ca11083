"""Published LoRA weights, embeddings and norms, as one adapter of PEFT's."""

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
from longlora.released.published_folder import TRAINABLE, Published, read_json
from longlora.released.published_weights import alone, check_shape, plain_name, read_weights

logger = logging.getLogger("longlora")

# What an adapter of the original never has, and what would be computed otherwise.
_UNKNOWN_SETTINGS = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layers_to_transform")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What was published, by plain names: low-rank updates, and embeddings and norms where those are wanted."""

    tensors: dict[str, Tensor]
    config: LoraConfig


def read_parts(published: Published, skeleton: Skeleton, base: str, *, lora_only: bool) -> Parts:
    """Read all parts and hold them against the base, so that nothing is missing and nothing is left over.

    A row that the embedding has more than the base is the original's `[PAD]`, which it adds to every tokenizer without
    a padding token: never a target, never before a token that is one. It is left out, so the adapter fits the base.

    Raises:
        CheckpointError: a part is missing or damaged, or belongs to another base.
    """
    low_rank: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    for file in filter(None, (*published.files, published.trainable)):
        # `pytorch_model.bin` holds the frozen weights too. The rule is the original's: anywhere in the name.
        holds_frozen = published.kind == "consolidated" and file != published.trainable
        for name, weight in read_weights(file).items():
            plain = plain_name(name, skeleton)
            if ".lora_A." in plain or ".lora_B." in plain:
                low_rank[plain.replace(".default.", ".")] = weight
            elif not holds_frozen or "embed" in name or "norm" in name:
                whole[plain] = weight
    config = _config(published.folder, base)
    _check_low_rank(low_rank, config, skeleton, published.folder, base)
    if lora_only:
        return Parts(tensors=low_rank, config=config)
    modules = embedding_and_norm_names(skeleton.model)
    _check_whole(whole, modules, skeleton, published.folder, base)
    if skeleton.is_tied:
        whole[skeleton.output_embedding] = whole[skeleton.input_embedding]  # twice, as PEFT writes it
    elif skeleton.output_embedding in whole:
        modules.append(skeleton.output_embedding.removesuffix(".weight"))
    config.modules_to_save = modules
    config.ensure_weight_tying = skeleton.is_tied
    return Parts(tensors=low_rank | whole, config=config)


def write_adapter(parts: Parts, directory: Path) -> None:
    """Write the adapter as PEFT reads it."""
    tensors = {f"base_model.model.{name}": alone(weight) for name, weight in parts.tensors.items()}
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    parts.config.save_pretrained(directory)


def _config(folder: Path, base: str) -> LoraConfig:
    path = folder / ADAPTER_CONFIG
    values = read_json(path)
    unknown = [name for name in _UNKNOWN_SETTINGS if values.get(name)]
    if unknown or values.get("bias", "none") != "none" or values.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(
            f"{path} describes another kind of adapter than the original's ({', '.join(unknown) or 'type or bias'}); "
            "if it is PEFT's, it needs no import: use it as it is"
        )
    try:
        # Written by the original's supervised fine-tuning as a list in a list.
        targets = [
            name for entry in values["target_modules"] for name in ([entry] if isinstance(entry, str) else entry)
        ]
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


def _check_low_rank(
    low_rank: dict[str, Tensor], config: LoraConfig, skeleton: Skeleton, folder: Path, base: str
) -> None:
    if not low_rank:
        raise CheckpointError(f"{folder} holds no LoRA weights, though it has {ADAPTER_CONFIG}")
    wanted: dict[str, tuple[int, int]] = {}
    for name, layer in skeleton.model.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in (config.target_modules or ()):
            wanted[f"{name}.lora_A.weight"] = (config.r, layer.in_features)
            wanted[f"{name}.lora_B.weight"] = (layer.out_features, config.r)
    if missing := sorted(wanted.keys() - low_rank.keys()):
        raise CheckpointError(
            f"{folder} is incomplete: {len(missing)} of {len(wanted)} LoRA weights for {base} are missing, such as "
            f"{missing[0]}"
        )
    if spare := sorted(low_rank.keys() - wanted.keys()):
        raise CheckpointError(
            f"{folder} holds LoRA weights that {base} has no layer for, such as {spare[0]}: they belong to another "
            "base; say --base"
        )
    for name, shape in wanted.items():
        if tuple(low_rank[name].shape) != shape:
            raise CheckpointError(
                f"{name} has shape {tuple(low_rank[name].shape)} and {base} needs {shape}: it belongs to another base"
            )


def _check_whole(whole: dict[str, Tensor], modules: list[str], skeleton: Skeleton, folder: Path, base: str) -> None:
    # As PEFT matches them: by how a module's name ends.
    wanted = {name for name in skeleton.shapes if name.rpartition(".")[0].endswith(tuple(modules))}
    if missing := sorted(wanted - whole.keys()):
        raise CheckpointError(
            f"{folder} is incomplete: {len(missing)} of {len(wanted)} trained embeddings and norms are "
            f"missing, such as {missing[0]}; they stand in {TRAINABLE}, which the original's "
            "get_trainable_weights.py makes out of pytorch_model.bin. Without them the model is clearly worse; "
            "--lora-only imports it so"
        )
    if spare := sorted(whole.keys() - wanted - {skeleton.output_embedding}):
        raise CheckpointError(
            f"{folder} holds {spare[0]} beside LoRA weights, which is neither an embedding nor a norm of {base}: they "
            "belong to another base; say --base"
        )
    for name, weight in whole.items():
        extra = weight.shape[0] - skeleton.rows if name in (skeleton.input_embedding, skeleton.output_embedding) else 0
        if extra == 1:
            logger.info("%s: the row of the original's [PAD] is left out", name)
            whole[name] = weight[:-1]
        elif extra:
            raise CheckpointError(
                f"{name} has {weight.shape[0]:,} rows and {base} {skeleton.rows:,}: it belongs to another base; say "
                "--base"
            )
        check_shape(name, whole[name], skeleton, base)
