"""Find out, before any weights are loaded, which layers of an architecture would train with S²-Attn."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from longlora.errors import ConfigError
from longlora.positions import without_dynamic_scaling
from longlora.register import s2_attention_forward, trains_in_groups

_PROBE_TOKENS = 8
_OWN_ATTENTION = (
    "its attention does not go through transformers' attention interface; train it with attention.pattern: full"
)


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
    calls: list[tuple[torch.nn.Module, bool, dict[str, Any]]] = []

    def watching(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **named: Any
    ) -> tuple[Tensor, None]:
        output = s2_attention_forward(module, query, key, value, attention_mask, **named)
        calls.append((module, trains_in_groups(module, attention_mask), named))
        return output

    AttentionInterface.register("s2", watching)
    try:
        model = _run_without_weights(config, calls)
    except ConfigError:
        raise
    except Exception as error:  # whatever an architecture does with an attention and a mask that it does not know
        if isinstance(error, KeyError) and error.args == ("s2",):  # looked up in a table of the architecture's own
            raise ConfigError(f"no layer of {config.model_type} would train with S²-Attn: {_OWN_ATTENTION}") from None
        raise ConfigError(
            f'{config.model_type} does not run with attn_implementation="s2" ({type(error).__name__}: {error}); '
            "train it with attention.pattern: full"
        ) from error
    finally:
        AttentionInterface.register("s2", s2_attention_forward)
    layers = _layers(model, calls)
    if not layers.grouped:
        raise ConfigError(_why_not_reached(config, layers))
    return layers


def _run_without_weights(config: PreTrainedConfig, calls: list) -> PreTrainedModel:
    """Run a forward pass on "meta": shapes alone, whatever the size of the model."""
    # bfloat16, because torch knows no grouped matrix product (mixtures of experts) of float32 on "meta".
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            without_dynamic_scaling(config), attn_implementation="s2", dtype=torch.bfloat16
        ).train()
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


def _layers(model: PreTrainedModel, calls: list[tuple[torch.nn.Module, bool, dict[str, Any]]]) -> S2Layers:
    names = {module: name for name, module in model.named_modules()}
    return S2Layers(
        grouped=tuple(dict.fromkeys(names[module] for module, is_grouped, _ in calls if is_grouped)),
        windowed=tuple(dict.fromkeys(names[module] for module, is_grouped, _ in calls if not is_grouped)),
        softcapped=any(named.get("softcap") is not None for _, _, named in calls),
        with_sinks=any(named.get("s_aux") is not None for _, _, named in calls),
    )


def _why_not_reached(config: PreTrainedConfig, layers: S2Layers) -> str:
    begin = f"no layer of {config.model_type} would train with S²-Attn"
    if not layers.windowed:
        return f"{begin}: {_OWN_ATTENTION}"
    window = getattr(config.get_text_config(), "sliding_window", None)
    return (
        f"{begin}: each has a window of its own (sliding_window={window}), beyond which the extended model would not "
        "read either; set sliding_window to null in its config.json, or train it with attention.pattern: full"
    )
