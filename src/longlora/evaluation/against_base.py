"""Measure a model against the base that it was made of, by their names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from peft import PeftConfig

from longlora.errors import ConfigError
from longlora.evaluation.logits import vocabulary_size
from longlora.evaluation.scoring import Document
from longlora.evaluation.short_context import ShortContext, compare_losses, window_losses
from longlora.evaluation.subject import model_identity, provenance
from longlora.evaluation.texts import Texts
from longlora.models.checkpoint import is_adapter, read_extension
from longlora.models.load import DtypeName, apply_extension, load_config, load_for_inference, model_source
from longlora.models.positions import readable_context


def measure_short_context(
    model_name: str,
    texts: Texts,
    *,
    base: str | None = None,
    stride: int | None = None,
    max_targets: int | None = None,
    across_documents: bool = False,
    device_map: str | None = None,
    dtype: DtypeName = "auto",
) -> ShortContext:
    """Load a model and the base it was made of, one after the other, and compare them at the base's own context.

    An adapter names its base; of any other model `base` must. `stride` are the tokens scored in a window: 256 or half
    of the context if that is less.

    Raises:
        CheckpointError: a model cannot be loaded, or produces NaN.
        ConfigError: the base is not known, or has another tokenizer.
        DataError: the texts cannot be read, or none is as long as the base's context.
    """
    base = base or base_of(model_name)
    if base is None:
        raise ConfigError(f"{model_name} does not say what it was made of: name the base with --base")
    length = readable_context(load_config(model_source(base)))
    stride = stride or max(1, min(256, length // 2))
    losses, weights, read = [], [], []
    for name in (base, model_name):
        model, tokenizer = load_for_inference(name, dtype=dtype, device_map=device_map)
        documents = texts.tokens(tokenizer, vocabulary_size(model), across_documents=across_documents)
        read.append(documents)
        losses.append(
            window_losses(model, documents, length=length, stride=stride, max_targets=max_targets, description=name)
        )
        weights.append(model_identity(model))
        del model
    check_same_tokens(*read, base=base, model_name=model_name)
    return compare_losses(
        losses[0],
        losses[1],
        names=(base, model_name),
        weights=(weights[0], weights[1]),
        length=length,
        stride=stride,
        settings={"data": texts.description, "stride": stride, "across_documents": across_documents},
        provenance=provenance(),
    )


def check_same_tokens(
    base_tokens: Sequence[Document], tokens: Sequence[Document], *, base: str, model_name: str
) -> None:
    """Refuse to compare models that read other tokens in the same texts.

    Raises:
        ConfigError: their tokenizers differ on these texts.
    """
    same = len(base_tokens) == len(tokens) and all(
        np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(base_tokens, tokens, strict=True)
    )
    if not same:
        raise ConfigError(
            f"{model_name} reads other tokens than {base} in the same texts, so their perplexity cannot be compared: "
            "name the base it was made of with --base"
        )


def base_of(model_name: str) -> str | None:
    """Name the model that an adapter was made for; None for a model that stands alone.

    Raises:
        CheckpointError: there is no model of that name.
    """
    directory = Path(model_source(model_name))
    if not is_adapter(directory):
        return None
    extension = read_extension(directory)
    return extension.base_model if extension else PeftConfig.from_pretrained(directory).base_model_name_or_path


def named_context(model_name: str) -> int:
    """Return how many tokens a model says it reads, without loading its weights.

    Raises:
        CheckpointError: there is no model of that name.
        ConfigError: its configuration does not say.
    """
    config = load_config(model_source(base_of(model_name) or model_name))
    extension = read_extension(Path(model_source(model_name)))
    if extension is not None:
        apply_extension(config, extension)
    return readable_context(config)
