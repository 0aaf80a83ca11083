"""How a model writes: where it stops, and what it is asked for and nothing else.

The end of a turn is what the chat template writes after an answer, and so what fine-tuning on answers teaches; a base
model's own settings often name another token. Everything that generates, and everything that is saved, goes by the
ends that are found here.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("longlora")

# Words that no template writes.
_QUESTION, _ANSWER, _NEXT = "0QUESTION0", "0ANSWER0", "0NEXT0"


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token by which the tokenizer's chat template ends an answer; None without a template or such a token.

    It is the first special or added token after the last answer of a conversation. Where nothing is written there, as
    by GLM 4, it is the first one of the next turn.
    """
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    structural = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}
    structural.add(tokenizer.eos_token_id)  # GPT-2's is the unknown token too
    for following in ([], [{"role": "user", "content": _NEXT}]):
        try:
            text = tokenizer.apply_chat_template([*turns, *following], tokenize=False)
        except Exception:  # jinja's, and whatever a template raises by itself; who writes with it will be told
            return None
        _, answer, closing = str(text).partition(_ANSWER)
        if not answer:
            return None
        numbers = tokenizer(closing.partition(_NEXT)[0], add_special_tokens=False, verbose=False)["input_ids"]
        if found := [number for number in numbers if number in structural]:
            return found[0]
    return None


def end_tokens(own: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token at which generation stops: the model's own, the end of a text, and the end of a turn."""
    candidates = [*_named_ends(own), tokenizer.eos_token_id, turn_end(tokenizer)]
    return list(dict.fromkeys(number for number in candidates if number is not None))


def stop_at_every_end(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a model's own settings name every token at which it stops, in place."""
    settings = transformers_model(model).generation_config
    if settings is not None and not names_every_end(settings, tokenizer):  # None where a model does not generate
        settings.eos_token_id = end_tokens(settings, tokenizer)


def names_every_end(settings: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether generation by these settings stops wherever it should."""
    return end_tokens(settings, tokenizer) == _named_ends(settings)


def saved_settings(source: str | Path, config: PreTrainedConfig) -> GenerationConfig:
    """Read a saved model's own settings; where it has none, what its configuration says of them."""
    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:
        return GenerationConfig.from_model_config(config)


def lasting_settings(own: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """A model's own settings as they can be saved beside it, with every token at which it stops.

    Settings that transformers refuses to save, such as a temperature without `do_sample` (Vicuna, the first Llama 2),
    are repaired, and a message says how.
    """
    settings = copy.deepcopy(own)
    settings.eos_token_id = end_tokens(own, tokenizer) or None
    if (fault := _fault(settings)) is None:
        return settings
    settings.do_sample = True
    if _fault(settings) is None:
        logger.warning(
            "the model's generation_config.json has sampling settings without do_sample, which cannot be saved: "
            "do_sample is set to true"
        )
        return settings
    logger.warning(
        "the model's generation_config.json cannot be saved (%s): only its special tokens are kept",
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
    """The likeliest token each time, or at a temperature tokens drawn from the whole distribution; nothing else.

    For use within `plain_generation`, which keeps the model's own settings out: a penalty for repetition, say, would
    forbid a number that was asked for.
    """
    ends = end_tokens(transformers_model(model).generation_config, tokenizer)
    padding = next((n for n in (tokenizer.pad_token_id, *ends) if n is not None), 0)  # which one row has no use for
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=ends or None, pad_token_id=padding, do_sample=temperature > 0
    )
    if temperature > 0:
        settings.update(temperature=temperature, top_p=top_p, top_k=0)
    return settings


def make_lasting(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model that is about to be trained the settings to be saved with it, in place."""
    base = transformers_model(model)
    if base.generation_config is not None:  # else it does not generate
        base.generation_config = lasting_settings(base.generation_config, tokenizer)


@contextmanager
def plain_generation(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Let `generate` go by what it is given alone.

    transformers fills whatever is None there from the model's own settings, so that these are put aside meanwhile.
    """
    base = transformers_model(model)
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def transformers_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model that an adapter sits on, or the model itself."""
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
