"""Read published weight files without executing pickled code, and combine them into one PEFT adapter."""

import logging
import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from longlora.errors import CheckpointError, first_line
from longlora.models.directories import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from longlora.models.lora import embedding_and_norm_names
from longlora.models.shards import check_no_pointer
from longlora.models.skeleton import Skeleton
from longlora.released.published_folder import TRAINABLE, Published
from longlora.support.files import read_json

logger = logging.getLogger("longlora")

Shapes = Mapping[str, tuple[int, ...]]

_REFUSED = re.compile(r"\bGLOBAL ([\w.]+)")  # the full name of what torch refuses to unpickle
_OLDER_OUTPUT = "embed_out."  # GPT-NeoX before transformers 5
_TRANSIENT = "rotary_emb.inv_freq"  # a buffer saved by older versions of transformers
# Settings that the original's adapters never have, and that would change the computation.
_UNKNOWN_SETTINGS = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layers_to_transform")
_NO_WHOLE = (
    f"; they are in {TRAINABLE}, which the original's get_trainable_weights.py extracts from pytorch_model.bin. "
    "Without them the model is clearly worse; --lora-only imports it anyway"
)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a `.bin` (tensors only) or `.safetensors` file to the CPU, memory-mapped if its format allows.

    Raises:
        CheckpointError: it is damaged, or is not a table of tensors.
    """
    check_no_pointer(file)
    try:
        if file.suffix == ".safetensors":
            weights = load_file(file)
        else:
            with file.open("rb") as opened:
                is_zip = opened.read(2) == b"PK"  # the format since torch 1.6, the only one that can be memory-mapped
            weights = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # safetensors, pickle and torch each raise their own exceptions for a bad file
        raise CheckpointError(f"{file} cannot be read: {_reason(error)}") from error
    if not isinstance(weights, Mapping) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise CheckpointError(f"{file} is not a table of weights")
    return {name: weight for name, weight in weights.items() if not name.endswith(_TRANSIENT)}


def _reason(error: Exception) -> str:
    """Describe the problem with a file; torch's own message suggests executing the pickle."""
    if found := _REFUSED.search(str(error)):
        return (
            f"besides tensors it contains {found[1]}, and reading that could execute arbitrary code; get the weights "
            "as safetensors, or from a source you trust"
        )
    if isinstance(error, pickle.UnpicklingError | LookupError):
        return "it is not a weights file, or is damaged; download it again"
    return f"{first_line(error)}; download it again"


def alone(weight: Tensor) -> Tensor:
    """Return a weight that shares no memory with others, as safetensors requires."""
    is_whole = weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes
    return weight if is_whole else weight.clone(memory_format=torch.contiguous_format)


def plain_name(name: str, skeleton: Skeleton) -> str:
    """Remove what PEFT, DeepSpeed and older versions of transformers add to a weight's name."""
    name = name.removeprefix("module.").removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
    if name.startswith(_OLDER_OUTPUT) and name not in skeleton.shapes:
        return skeleton.output_embedding
    return name


def check_shapes(found: Mapping[str, Tensor], wanted: Shapes, *, what: str, base: str) -> None:
    """Check names and shapes of weights against those of the base.

    Raises:
        CheckpointError: the base has no weight of this name, or one of another shape.
    """
    for name, weight in found.items():
        if name not in wanted:
            raise CheckpointError(
                f"{name} was published, but is not among the {what} of {base}: they belong to another base; give --base"
            )
        if tuple(weight.shape) != wanted[name]:
            raise CheckpointError(
                f"{name} has shape {tuple(weight.shape)} in the published weights and {wanted[name]} in {base}: they "
                "belong to another base; give --base"
            )


def check_complete(found: Collection[str], wanted: Shapes, *, what: str, folder: Path, hint: str = "") -> None:
    """Check that no weight is missing.

    Raises:
        CheckpointError: a weight is missing.
    """
    if missing := sorted(wanted.keys() - set(found)):
        raise CheckpointError(
            f"{folder} is incomplete: {len(missing)} of {len(wanted)} {what} are missing, such as {missing[0]}{hint}"
        )


def read_adapter(
    published: Published, skeleton: Skeleton, base: str, *, lora_only: bool
) -> tuple[dict[str, Tensor], LoraConfig]:
    """Combine the low-rank updates with embeddings and norms, and check them against the base.

    One extra row of the embedding is the original's `[PAD]`, which it adds to every tokenizer without a padding token.
    It is never a target and never precedes one, so it is left out, and the adapter fits the base.

    Returns:
        The tensors by plain name, without embeddings and norms if `lora_only`; and the adapter's configuration.

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
        return low_rank, config
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
    return low_rank | whole, config


def write_adapter(tensors: dict[str, Tensor], config: LoraConfig, directory: Path) -> None:
    """Write an adapter in PEFT's format."""
    named = {f"base_model.model.{name}": alone(weight) for name, weight in tensors.items()}
    save_file(named, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(directory)


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
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} is incomplete or damaged: {error!r}") from error


def _low_rank_shapes(config: LoraConfig, skeleton: Skeleton) -> Shapes:
    wanted = {}
    for name, layer in skeleton.model.named_modules():
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in (config.target_modules or ()):
            wanted[f"{name}.lora_A.weight"] = (config.r, layer.in_features)
            wanted[f"{name}.lora_B.weight"] = (layer.out_features, config.r)
    return wanted
