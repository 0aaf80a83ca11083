"""A published model, pickles or safetensors, as safetensors with the positions that it was trained with."""

import logging
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedConfig

from longlora.errors import CheckpointError
from longlora.models.shards import ShardWriter
from longlora.released.pickles import alone, read_weights
from longlora.released.published import Published
from longlora.released.skeleton import Skeleton, check_shape, make_skeleton, plain_name

logger = logging.getLogger("longlora")


def convert_model(published: Published, config: PreTrainedConfig, directory: Path) -> None:
    """Write weights, file by file, and the configuration, whose positions are already those of the result.

    Raises:
        CheckpointError: weights are missing, damaged, or do not go with the configuration.
    """
    skeleton = make_skeleton(config)
    writer = ShardWriter(directory)
    seen: set[str] = set()
    dtype: torch.dtype | None = None
    for file in tqdm(published.files, desc="converting", unit="file", disable=len(published.files) == 1 or None):
        weights = {plain_name(name, skeleton): alone(weight) for name, weight in read_weights(file).items()}
        if any(".lora_A." in name for name in weights):
            raise CheckpointError(
                f"{published.folder} holds LoRA weights that are not merged, and no adapter_config.json that says how "
                "they are scaled; the original's scripts write it when a run is saved"
            )
        if not seen:
            skeleton = _fit_rows(weights, config, skeleton)
        if skeleton.is_tied:
            weights.pop(skeleton.output_embedding, None)
        for name, weight in weights.items():
            check_shape(name, weight, skeleton, "config.json")
        dtype = dtype or next((weight.dtype for weight in weights.values() if weight.is_floating_point()), None)
        seen |= weights.keys()
        writer.write(file.name.replace("pytorch_model", "model").replace(".bin", ".safetensors"), weights)
    writer.finish()
    missing = sorted(skeleton.shapes.keys() - seen - ({skeleton.output_embedding} if skeleton.is_tied else set()))
    if missing:
        raise CheckpointError(
            f"{published.folder} is incomplete: {len(missing)} weights are missing, such as {missing[0]}"
        )
    config.dtype = dtype
    config.architectures = [type(skeleton.model).__name__]
    config.save_pretrained(directory)


def _fit_rows(weights: dict[str, Tensor], config: PreTrainedConfig, skeleton: Skeleton) -> Skeleton:
    """Take the embedding's number of rows where it is one more, the original's [PAD], than the configuration says."""
    embedding = weights.get(skeleton.input_embedding)
    if embedding is None or embedding.shape[0] != skeleton.rows + 1:
        return skeleton
    logger.warning(
        "the embedding has %s rows, one more than config.json says: the original's [PAD]; vocab_size now says so",
        f"{embedding.shape[0]:,}",
    )
    config.get_text_config().vocab_size = embedding.shape[0]
    return make_skeleton(config)
