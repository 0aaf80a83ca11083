"""What is said once of a model that trains with "s2": which layers do so, and batches that train otherwise.

Attention knows its layer and the layer's configuration, which all layers of a model share. So that is what stands for
the model here.
"""

import logging
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import PreTrainedConfig

from longlora.attention import CutPoints
from longlora.errors import ConfigError
from longlora.models.deferred_mask import DeferredMask
from longlora.models.grouping import GROUP_SIZE_VARIABLE, USE_FULL_ATTENTION, Grouping

logger = logging.getLogger("longlora")


@dataclass
class _Model:
    """What is known of a model."""

    said: set[str] = field(default_factory=set)
    groups: dict[str, bool] = field(default_factory=dict)
    """Whether each layer trains in groups, as far as the first forward pass has come."""
    masks: dict[str, weakref.ref[DeferredMask]] = field(default_factory=dict)


_models: dict[int, _Model] = {}


def _model(config: PreTrainedConfig) -> _Model:
    # By identity: a configuration has no hash, and two models may have equal ones.
    if id(config) not in _models:
        _models[id(config)] = _Model()
        weakref.finalize(config, _models.pop, id(config), None)
    return _models[id(config)]


def knows_layers(config: PreTrainedConfig) -> bool:
    """Whether `tell_layers` has been called for the model."""
    return "layers" in _model(config).said


def tell_layers(config: PreTrainedConfig, grouped: Sequence[str], windowed: Sequence[str]) -> None:
    """Say which layers train in groups and which do not, by their names; a warning where some do not.

    Raises:
        ConfigError: none does.
    """
    if not grouped:
        raise ConfigError(why_none_is_grouped(config))
    _model(config).said.add("layers")
    if not windowed:
        logger.info("all %s layers of attention train with S²-Attn", len(grouped))
        return
    logger.warning(
        "S²-Attn reaches %s of %s layers of attention (%s); the others have a window of their own (%s) and keep it",
        len(grouped),
        len(grouped) + len(windowed),
        ", ".join(_short(name) for name in grouped),
        _named(_windows(config)),
    )


def why_none_is_grouped(config: PreTrainedConfig) -> str:
    """Say why a model is refused whose layers all have windows."""
    windows = _windows(config)
    return (
        f"no layer of {config.model_type} would train with S²-Attn: each has a window of its own "
        f"({_named(windows)}), beyond which the extended model would not read either; set "
        f"{' and '.join(windows) or 'it'} to null in its config.json, or {USE_FULL_ATTENTION}"
    )


def _windows(config: PreTrainedConfig) -> dict[str, int]:
    names = ("sliding_window", "attention_chunk_size", "attention_window_size")
    return {name: value for name in names if (value := getattr(config, name, None)) is not None}


def _named(windows: dict[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in windows.items())


def _short(name: str) -> str:
    """The number of a layer out of the name of its attention, where there is one."""
    number = re.search(r"\d+", name)
    return number.group() if number else name


@torch.compiler.disable
def watch_layer(module: torch.nn.Module, mask: DeferredMask, *, is_grouped: bool) -> None:
    """Note a layer's call in training, and `tell_layers` when all have been called: at the last one.

    Where that has no number, or attention of another kind, it shows in the next forward pass, which has other masks.

    Raises:
        ConfigError: as `tell_layers`.
    """
    config = module.config
    assert isinstance(config, PreTrainedConfig)
    model = _model(config)
    if "layers" in model.said:
        return
    number = getattr(module, "layer_idx", None)
    name = f"{type(module).__name__} {id(module)}" if number is None else str(number)
    is_next_pass = name in model.masks and model.masks[name]() is not mask
    if not is_next_pass:
        model.groups[name], model.masks[name] = is_grouped, weakref.ref(mask)
    if is_next_pass or number == getattr(config, "num_hidden_layers", 0) - 1:
        grouped = [name for name, trains_in_groups in model.groups.items() if trains_in_groups]
        tell_layers(config, grouped, [name for name in model.groups if name not in grouped])


def tell_of_forward(config: PreTrainedConfig, mask: DeferredMask, cuts: CutPoints, grouping: Grouping) -> None:
    """Warn of a training forward without gradients, and of one in which no document is cut."""
    say = partial(_warn_once, _model(config))
    if not mask.has_gradients:
        say(
            "no gradients",
            "a forward pass without gradients, of a model in training mode, attends as it trains: with S²-Attn; to "
            "generate or evaluate with ordinary attention, call model.eval() before",
        )
    assert grouping.group_size is not None
    if "whole" not in _model(config).said and mask.longest_document(cuts) <= grouping.group_size // 2:
        say(
            "whole",
            f"S²-Attn cuts no document of this batch: the longest has {mask.longest_document(cuts):,} tokens, and "
            f"groups have {grouping.group_size:,}. Such a batch trains with full attention. Groups are a quarter of "
            "the model's context (max_position_embeddings) unless longlora.set_group_size(model, …) or "
            f"{GROUP_SIZE_VARIABLE} says otherwise. This is said once.",
        )


def excuse_no_gradients(config: PreTrainedConfig) -> None:
    """Say nothing of this model's forward passes without gradients: who makes them knows how they attend."""
    _model(config).said.add("no gradients")


def _warn_once(model: _Model, topic: str, message: str) -> None:
    if topic not in model.said:
        model.said.add(topic)
        logger.warning(message)
