"""Find the layers that train with S²-Attn: probed on a weightless copy, observed in training, and reported once."""

import logging
import re
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from longlora.attention import CutPoints, HeadShard
from longlora.errors import ConfigError
from longlora.models.deferred_mask import DeferredMask
from longlora.models.grouping import GROUP_SIZE_VARIABLE, USE_FULL_ATTENTION, Grouping, set_grouping
from longlora.models.positions import without_dynamic_scaling

logger = logging.getLogger("longlora")

_PROBE_TOKENS = 8
_OWN_ATTENTION = f"its attention does not go through transformers' attention interface; {USE_FULL_ATTENTION}"


@dataclass(frozen=True)
class _Call:
    """One call of attention."""

    module: torch.nn.Module
    is_grouped: bool
    is_softcapped: bool
    has_sinks: bool


# The calls seen by the probe of this thread; other threads may be training.
_calls: ContextVar[list[_Call] | None] = ContextVar("calls of attention", default=None)


def note_call(module: torch.nn.Module, *, is_grouped: bool, softcap: float | None, sinks: Tensor | None) -> None:
    """Record a call of attention, if a probe is running in this thread."""
    if (calls := _calls.get()) is not None:
        calls.append(_Call(module, is_grouped, softcap is not None, sinks is not None))


class CannotTellError(ConfigError):
    """The model cannot be probed, since it does not run without weights; it may still train."""


@dataclass(frozen=True, kw_only=True)
class S2Layers:
    """What a model's attention layers, by module name, do during training with "s2"."""

    grouped: tuple[str, ...]  # train with S²-Attn
    windowed: tuple[str, ...]  # keep their own limit on how far back they look (sliding window, chunks)
    softcapped: bool  # some cap their scores by a tanh, which "sdpa" does not support
    with_sinks: bool  # some have a learned logit in the softmax, which "sdpa" does not support


def check_s2_reaches(config: PreTrainedConfig) -> S2Layers:
    """Verify, on a weightless copy of the model, that it trains with S²-Attn, and return in which layers.

    Raises:
        ConfigError: the architecture computes its own attention, or has its own window in every layer, so "s2" would
            silently train something else; or it needs a feature that S²-Attn does not implement.
    """
    # Imported here, because "s2" is registered while transformers is still loading.
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    if config.is_encoder_decoder:
        raise ConfigError(
            f"{config.model_type} has an encoder, which attends in both directions, but S²-Attn is for decoders only; "
            "choose a causal language model"
        )
    kind = type(config)
    reads_images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
    architecture = AutoModelForImageTextToText if reads_images else AutoModelForCausalLM
    return _layers(
        config, lambda config: architecture.from_config(config, attn_implementation="s2", dtype=torch.bfloat16)
    )


def layers_of(model: PreTrainedModel) -> S2Layers:
    """Return the same for a model already loaded with "s2", by probing a weightless copy of it.

    Raises:
        CannotTellError: the copy does not run.
        ConfigError: as for `check_s2_reaches`.
    """
    return _layers(model.config, lambda config: type(model)(config).to(torch.bfloat16))


def _layers(config: PreTrainedConfig, make: Callable[[PreTrainedConfig], PreTrainedModel]) -> S2Layers:
    calls: list[_Call] = []
    token = _calls.set(calls)
    try:
        model = _run_without_weights(config, make, calls)
    except ConfigError:
        raise
    except Exception as error:  # an architecture may fail in any way on an unknown attention and mask
        if isinstance(error, KeyError) and error.args == ("s2",):  # the architecture has its own table of attentions
            raise ConfigError(f"no layer of {config.model_type} would train with S²-Attn: {_OWN_ATTENTION}") from None
        raise CannotTellError(
            f'{config.model_type} does not run with attn_implementation="s2" ({type(error).__name__}: {error}); '
            + USE_FULL_ATTENTION
        ) from error
    finally:
        _calls.reset(token)
    names = {module: name for name, module in model.named_modules()}
    layers = S2Layers(
        grouped=tuple(dict.fromkeys(names[call.module] for call in calls if call.is_grouped)),
        windowed=tuple(dict.fromkeys(names[call.module] for call in calls if not call.is_grouped)),
        softcapped=any(call.is_softcapped for call in calls),
        with_sinks=any(call.has_sinks for call in calls),
    )
    if layers.windowed and not layers.grouped:
        raise ConfigError(_why_none_is_grouped(config.get_text_config()))
    if not layers.grouped:
        raise ConfigError(f"no layer of {config.model_type} would train with S²-Attn: {_OWN_ATTENTION}")
    return layers


def _run_without_weights(
    config: PreTrainedConfig, make: Callable[[PreTrainedConfig], PreTrainedModel], calls: list[_Call]
) -> PreTrainedModel:
    """Run a forward pass on "meta", which has only shapes and so is cheap for any model size."""
    # `make` returns bfloat16: torch has no grouped matrix product (mixtures of experts) for float32 on "meta".
    with torch.device("meta"):
        model = make(without_dynamic_scaling(config)).train()
        set_grouping(model, Grouping(group_size=_PROBE_TOKENS))  # a configuration may state no context for a default
        tokens = torch.zeros(1, _PROBE_TOKENS, dtype=torch.long)
        try:
            # With a cache, transformers does not search for packed documents, and without a mask, linear attention does
            # not search for padding; "meta" has no values to search.
            model(input_ids=tokens, use_cache=True)
        except ConfigError:
            raise
        except Exception:  # a few support no cache, or inspect other values: these may run with a mask
            calls.clear()
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return model


@dataclass
class _Model:
    """The state kept for a model, identified by the configuration that all its layers share."""

    said: set[str] = field(default_factory=set)
    groups: dict[str, bool] = field(default_factory=dict)  # by layer, for those called so far in the first forward pass
    masks: dict[str, weakref.ref[DeferredMask]] = field(default_factory=dict)


_models: dict[int, _Model] = {}


def _model(config: PreTrainedConfig) -> _Model:
    # By identity: configurations are not hashable, and two models may have equal ones.
    if id(config) not in _models:
        _models[id(config)] = _Model()
        weakref.finalize(config, _models.pop, id(config), None)
    return _models[id(config)]


def knows_layers(config: PreTrainedConfig) -> bool:
    """Return whether `tell_layers` has reported on the model."""
    return "layers" in _model(config).said


def tell_layers(config: PreTrainedConfig, grouped: Sequence[str], windowed: Sequence[str], grouping: Grouping) -> None:
    """Log which layers train in groups and which do not, by name; as a warning if some keep their own window.

    Raises:
        ConfigError: no layer does, or the interval of full attention is longer than the model.
    """
    if not grouped:
        raise ConfigError(_why_none_is_grouped(config))
    full = grouping.full_layers(config)
    _model(config).said.add("layers")
    numbers = [number.group() if (number := re.search(r"\d+", name)) else name for name in grouped]
    num_layers, in_groups = len(grouped) + len(windowed), [number for number in numbers if number not in map(str, full)]
    if len(in_groups) == num_layers:
        logger.info("all %s attention layers train with S²-Attn", num_layers)
        return
    others = [f"{len(full)} train with full attention ({', '.join(map(str, full))})"] if full else []
    others += [f"the others keep their own window ({', '.join(_windows(config))})"] if windowed else []
    logger.log(
        logging.WARNING if windowed else logging.INFO,
        "%s of %s attention layers train with S²-Attn (%s); %s",
        len(in_groups),
        num_layers,
        ", ".join(in_groups),
        "; ".join(others),
    )


def _why_none_is_grouped(config: PreTrainedConfig) -> str:
    windows = _windows(config)
    return (
        f"no layer of {config.model_type} would train with S²-Attn: each has a window of its own "
        f"({', '.join(windows)}), beyond which the extended model would not read either; set "
        f"{' and '.join(window.partition('=')[0] for window in windows) or 'it'} to null in its config.json, or "
        + USE_FULL_ATTENTION
    )


def _windows(config: PreTrainedConfig) -> list[str]:
    names = ("sliding_window", "attention_chunk_size", "attention_window_size")
    return [f"{name}={value}" for name in names if (value := getattr(config, name, None)) is not None]


@torch.compiler.disable
def watch_layer(module: torch.nn.Module, mask: DeferredMask, grouping: Grouping, *, is_grouped: bool) -> None:
    """Record a layer's call in training, and call `tell_layers` after the last layer.

    If the last layer has no number or another kind of attention, the first layer called again with a new mask shows
    that all have been called.

    Raises:
        ConfigError: as for `tell_layers`.
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
        tell_layers(config, grouped, [name for name in model.groups if name not in grouped], grouping)


def tell_of_forward(config: PreTrainedConfig, mask: DeferredMask, cuts: CutPoints, grouping: Grouping) -> None:
    """Warn if a forward pass in training mode has no gradients, or cuts no document."""
    if not mask.has_gradients:
        _say_once(
            config,
            "no gradients",
            "this forward pass without gradients uses S²-Attn, because the model is in training mode; to generate or "
            "evaluate with ordinary attention, call model.eval() first",
        )
    assert grouping.group_size is not None
    # Half a group fits into the first shifted one, and less than a group into the first unshifted one.
    most = grouping.group_size // 2 if grouping.shift else grouping.group_size - 1
    if "whole" not in _model(config).said and mask.longest_document(cuts) <= most:
        _say_once(
            config,
            "whole",
            f"S²-Attn cuts no document of this batch: the longest has {mask.longest_document(cuts):,} tokens, and "
            f"groups have {grouping.group_size:,}. Such a batch trains with full attention. Groups are a quarter of "
            "the model's context (max_position_embeddings) unless longlora.set_group_size(model, …) or "
            f"{GROUP_SIZE_VARIABLE} says otherwise. This warning appears only once.",
        )


def tell_of_gathered_rows(config: PreTrainedConfig, heads: HeadShard) -> None:
    """Log once that Ulysses sequence parallelism divides the heads of each layer."""
    told = f"sequence parallelism: S²-Attn cuts whole rows, 1/{heads.count} of the heads in each process"
    _say_once(config, "heads", told, level=logging.INFO)


def excuse_no_gradients(config: PreTrainedConfig) -> None:
    """Do not warn of this model's forward passes without gradients: the caller knows how they attend."""
    _model(config).said.add("no gradients")


def _say_once(config: PreTrainedConfig, topic: str, message: str, *, level: int = logging.WARNING) -> None:
    if topic not in _model(config).said:
        _model(config).said.add(topic)
        logger.log(level, message)
