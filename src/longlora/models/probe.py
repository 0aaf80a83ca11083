"""Find out, before any weights are loaded, which layers of an architecture would train with S²-Attn."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from longlora.errors import ConfigError
from longlora.models.grouping import USE_FULL_ATTENTION
from longlora.models.notices import why_none_is_grouped
from longlora.models.positions import without_dynamic_scaling

_PROBE_TOKENS = 8
_OWN_ATTENTION = f"its attention does not go through transformers' attention interface; {USE_FULL_ATTENTION}"


@dataclass(frozen=True)
class _Call:
    """One call of attention."""

    module: torch.nn.Module
    is_grouped: bool
    is_softcapped: bool
    has_sinks: bool


# What the probe of this thread has seen; other threads train meanwhile.
_calls: ContextVar[list[_Call] | None] = ContextVar("calls of attention", default=None)


def note_call(module: torch.nn.Module, *, is_grouped: bool, softcap: float | None, sinks: Tensor | None) -> None:
    """Tell the probe, if one runs in this thread, of a call of attention."""
    if (calls := _calls.get()) is not None:
        calls.append(_Call(module, is_grouped, softcap is not None, sinks is not None))


class CannotTellError(ConfigError):
    """A model does not run without weights, which does not mean that it would not train."""


@dataclass(frozen=True, kw_only=True)
class S2Layers:
    """What the attention layers of a model do while it trains under "s2", as the names of their modules."""

    grouped: tuple[str, ...]
    """Layers that train with S²-Attn."""

    windowed: tuple[str, ...]
    """Layers that limit how far back they look by themselves (sliding window, chunks), and go on doing so."""

    softcapped: bool
    """Whether scores are capped by a tanh, which "sdpa" cannot do."""

    with_sinks: bool
    """Whether heads have a learned logit that takes part in the softmax, which "sdpa" cannot do."""


def check_s2_reaches(config: PreTrainedConfig) -> S2Layers:
    """Prove, on a weightless copy of the model, that S²-Attn is active in it when it trains, and tell in which layers.

    Raises:
        ConfigError: the architecture computes attention by itself, or in windows of its own, so that "s2" would train
            something else in silence; or it needs what S²-Attn does not implement.
    """
    # Here, because "s2" is registered while transformers is still loading.
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    if config.is_encoder_decoder:
        raise ConfigError(
            f"{config.model_type} has an encoder, which attends both ways, and S²-Attn is for decoders alone; choose a "
            "causal language model"
        )
    kind = type(config)
    reads_images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
    architecture = AutoModelForImageTextToText if reads_images else AutoModelForCausalLM
    return _layers(
        config, lambda config: architecture.from_config(config, attn_implementation="s2", dtype=torch.bfloat16)
    )


def layers_of(model: PreTrainedModel) -> S2Layers:
    """Tell the same of a model that is loaded with "s2", on a weightless copy of it.

    Raises:
        CannotTellError: the copy does not run.
        ConfigError: as `check_s2_reaches`.
    """
    return _layers(model.config, lambda config: type(model)(config).to(torch.bfloat16))


def _layers(config: PreTrainedConfig, make: Callable[[PreTrainedConfig], PreTrainedModel]) -> S2Layers:
    calls: list[_Call] = []
    token = _calls.set(calls)
    try:
        model = _run_without_weights(config, make, calls)
    except ConfigError:
        raise
    except Exception as error:  # whatever an architecture does with an attention and a mask that it does not know
        if isinstance(error, KeyError) and error.args == ("s2",):  # looked up in a table of the architecture's own
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
    if not layers.grouped:
        raise ConfigError(
            why_none_is_grouped(config.get_text_config())
            if layers.windowed
            else f"no layer of {config.model_type} would train with S²-Attn: {_OWN_ATTENTION}"
        )
    return layers


def _run_without_weights(
    config: PreTrainedConfig, make: Callable[[PreTrainedConfig], PreTrainedModel], calls: list[_Call]
) -> PreTrainedModel:
    """Run a forward pass on "meta": shapes alone, whatever the size of the model."""
    # `make` gives bfloat16, because torch knows no grouped matrix product (mixtures of experts) of float32 on "meta".
    with torch.device("meta"):
        model = make(without_dynamic_scaling(config)).train()
        tokens = torch.zeros(1, _PROBE_TOKENS, dtype=torch.long)
        try:
            # With a cache transformers does not look for packed documents, and without a mask linear attention does
            # not look for padding: on "meta" there are no values to look at.
            model(input_ids=tokens, use_cache=True)
        except ConfigError:
            raise
        except Exception:  # a few take no cache, or look for something else: those may get along with a mask
            calls.clear()
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return model
