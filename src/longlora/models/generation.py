"""Generation settings: the tokens at which a model stops, settings that can be saved, and plain decoding.

The end of a turn is the token that the chat template writes after an answer, which fine-tuning on answers teaches; a
base model's generation config often has another. All generation and all saved models use the end tokens found here.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("longlora")

# Words that occur in no template.
_QUESTION, _ANSWER, _NEXT = "0QUESTION0", "0ANSWER0", "0NEXT0"


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token with which the tokenizer's chat template ends an answer; None if there is no such token.

    It is the first special or added token after the last answer of a conversation, or if there is none, as for GLM 4,
    the first one of the next turn.
    """
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    structural = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}
    structural.add(tokenizer.eos_token_id)  # GPT-2's is the unknown token too
    for following in ([], [{"role": "user", "content": _NEXT}]):
        try:
            text = tokenizer.apply_chat_template([*turns, *following], tokenize=False)
        except Exception:  # from jinja or raised by the template; reported when the template is used
            return None
        _, answer, closing = str(text).partition(_ANSWER)
        if not answer:
            return None
        numbers = tokenizer(closing.partition(_NEXT)[0], add_special_tokens=False, verbose=False)["input_ids"]
        if found := [number for number in numbers if number in structural]:
            return found[0]
    return None


def end_tokens(own: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return all tokens at which generation stops: those of the settings, the end of a text, and the end of a turn."""
    candidates = [*_named_ends(own), tokenizer.eos_token_id, turn_end(tokenizer)]
    return list(dict.fromkeys(number for number in candidates if number is not None))


def stop_at_every_end(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add all end tokens to a model's generation config, in place."""
    settings = transformers_model(model).generation_config
    if settings is not None and not names_every_end(settings, tokenizer):  # None if the model does not generate
        settings.eos_token_id = end_tokens(settings, tokenizer)


def names_every_end(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether these settings contain exactly the tokens of `end_tokens`."""
    return end_tokens(settings, tokenizer) == _named_ends(settings)


def saved_settings(source: str | Path, config: PreTrainedConfig) -> GenerationConfig:
    """Load a saved model's generation config, or derive it from the model's configuration if it has none."""
    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:
        return GenerationConfig.from_model_config(config)


def lasting_settings(own: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Return a copy of a model's generation config with all end tokens, in a form that can be saved.

    Settings that transformers refuses to save, such as a temperature without `do_sample` (Vicuna, the first Llama 2),
    are repaired with a warning.
    """
    settings = copy.deepcopy(own)
    settings.eos_token_id = end_tokens(own, tokenizer) or None
    if (fault := _fault(settings)) is None:
        return settings
    settings.do_sample = True
    if _fault(settings) is None:
        logger.warning(
            "the model's generation_config.json has sampling settings without do_sample, which cannot be saved; "
            "do_sample is set to true"
        )
        return settings
    logger.warning(
        "the model's generation_config.json cannot be saved (%s); only its special tokens are kept",
        fault.splitlines()[0],
    )
    return GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=settings.eos_token_id, pad_token_id=own.pad_token_id
    )


def plain_settings(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> GenerationConfig:
    """Return settings for greedy decoding, or with a temperature for sampling from the whole distribution.

    For use within `plain_generation`, which disables the model's own settings: a repetition penalty, for example, might
    suppress the very number that was asked for.
    """
    ends = end_tokens(transformers_model(model).generation_config, tokenizer)
    padding = next((n for n in (tokenizer.pad_token_id, *ends) if n is not None), 0)  # unused for a single row
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=ends or None, pad_token_id=padding, do_sample=temperature > 0
    )
    if temperature > 0:
        settings.update(temperature=temperature, top_p=top_p, top_k=0)
    return settings


def make_lasting(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Replace the generation config of a model to be trained with one that can be saved, in place."""
    base = transformers_model(model)
    if base.generation_config is not None:  # None if the model does not generate
        base.generation_config = lasting_settings(base.generation_config, tokenizer)


@contextmanager
def plain_generation(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Make `generate` use only the settings passed to it.

    transformers replaces every None in them by the model's own setting, so these are set aside within the block.
    """
    base = transformers_model(model)
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def transformers_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the base model of an adapter, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _named_ends(settings: GenerationConfig | None) -> list[int]:
    named = settings.eos_token_id if settings is not None else None
    return [] if named is None else list(named) if isinstance(named, list | tuple) else [named]


def _fault(settings: GenerationConfig) -> str | None:
    try:
        settings.validate(strict=True)
    except ValueError as error:
        return str(error)
    return None
