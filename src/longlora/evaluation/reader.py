"""Ask a model one prompt at a time: its generated answer, and the log-probabilities of given choices."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from longlora.errors import CheckpointError, ConfigError
from longlora.evaluation.logits import Model, input_device, last_rows
from longlora.evaluation.questions import Question
from longlora.evaluation.scoring import evaluation_mode
from longlora.models.generation import plain_generation, plain_settings, transformers_model

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def share_found(answer: str, expected: Sequence[str], distractors: Sequence[str] = ()) -> float:
    """Return the share of expected words in the answer, or 0 if a distractor comes before the first of them.

    Only whole words match: 123 is not found in 1234. Case, white space and thousands separators are ignored. The rule
    about distractors keeps a model from being right by listing everything it has seen.
    """
    found, wrong = _places(answer, expected), _places(answer, distractors)
    if not found or (wrong and min(wrong) < min(found)):
        return 0.0
    return len(found) / len(expected)


def _places(answer: str, words: Sequence[str]) -> list[int]:
    matches = [re.search(rf"(?<!\w){re.escape(_normal(word))}(?!\w)", _normal(answer)) for word in words]
    return [match.start() for match in matches if match]


def _normal(text: str) -> str:
    return _THOUSANDS.sub("", " ".join(text.split())).casefold()


def read_answer(model: Model, tokenizer: PreTrainedTokenizerBase, question: Question) -> tuple[str, dict[str, float]]:
    """Ask one question with greedy decoding; one prefill serves generation and forced choice, without padding.

    Of the model's own generation settings only the end tokens are used: a repetition penalty, for instance, would
    penalize the very number asked for.

    Scores: `generated` is 1 if the answer contains everything expected, `found` the share of it. With choices also:
    `chosen` is 1 if the right one is the likeliest (1/k in a k-way tie), `rank` its rank (1 is best), and `margin` its
    log-probability minus that of the best wrong choice, in nats.

    Raises:
        CheckpointError: the model produces NaN.
    """
    scores: dict[str, float] = {}
    cache = None
    with evaluation_mode(model):
        if question.choices:
            log_probabilities, cache = _likelihoods(model, question)
            scores |= compare(log_probabilities)
        answer = _generate(model, tokenizer, question, cache)
    found = share_found(answer, question.expected, question.distractors)
    return answer, {"generated": float(found == 1), "found": found} | scores


def _generate(model: Model, tokenizer: PreTrainedTokenizerBase, question: Question, cache: Cache | None) -> str:
    input_ids = _row(model, question.input_ids)
    settings = plain_settings(model, tokenizer, max_new_tokens=question.max_new_tokens)
    settings.update(use_cache=True, output_logits=True, return_dict_in_generate=True)
    with plain_generation(model):
        output = model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=settings,
            past_key_values=cache,
        )
    _refuse_nan(any(logits.isnan().any().item() for logits in output.logits), question)
    new = output.sequences[0, input_ids.shape[1] :].tolist()
    return tokenizer.decode(new, skip_special_tokens=True)


def _likelihoods(model: Model, question: Question) -> tuple[list[float], Cache | None]:
    """Return each choice's log-probability, and a cache of all context tokens but the last, if it can be cropped."""
    context = _row(model, question.input_ids[: question.choice_context])  # (1, T)
    last = question.input_ids[question.choice_context - 1]
    cache = model(input_ids=context[:, :-1], use_cache=True, **last_rows(model, 1)).past_key_values
    values = []
    for choice in question.choices:
        tail = _row(model, [last, *choice[:-1]])  # (1, tokens of the choice)
        if cache is not None:
            logits = model(input_ids=tail, past_key_values=cache, use_cache=True).logits
            cache = _cut(cache, tail.shape[1])
        else:
            whole = torch.cat([context[:, :-1], tail], dim=1)
            rows = last_rows(model, tail.shape[1])
            logits = model(input_ids=whole, use_cache=False, **rows).logits[:, -tail.shape[1] :]
        log_probabilities = torch.log_softmax(logits[0].float(), dim=-1)
        values.append(log_probabilities[torch.arange(len(choice)), torch.tensor(choice)].sum().item())
        _refuse_nan(math.isnan(values[-1]), question)
    return values, cache


def _row(model: Model, ids: Sequence[int]) -> Tensor:
    return torch.tensor([list(ids)], device=input_device(model))


def _refuse_nan(found: bool, question: Question) -> None:
    if found:
        raise CheckpointError(
            f"The model produced NaN after a prompt of {len(question.input_ids):,} tokens: load it in bfloat16 or "
            "float32, or repair its weights. Finished trials are kept, and the same command resumes after them."
        )


def compare(log_probabilities: Sequence[float]) -> dict[str, float]:
    """Score a forced choice from log-probabilities in nats, the right choice's first; ties get their expected score.

    If g wrong choices are likelier and e as likely as the right one, rank is `1 + g + e / 2`, and chosen is
    `1 / (1 + e)` if g is 0, else 0. A log-probability of minus infinity counts as -10,000 nats.
    """
    right, *wrong = (max(value, -10_000.0) for value in log_probabilities)  # JSON has no infinity
    greater, equal = sum(value > right for value in wrong), sum(value == right for value in wrong)
    return {
        "chosen": 0.0 if greater else 1 / (1 + equal),
        "rank": 1 + greater + equal / 2,
        "margin": right - max(wrong),
    }


def check_positions(model: Model, num_tokens: int, *, beyond: bool) -> None:
    """Check that prompt and answer fit into the model's positions, unless `beyond` is set.

    Raises:
        ConfigError: they do not.
    """
    # Models without attention, such as Mamba, have no such number and no such limit.
    positions = getattr(transformers_model(model).config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and num_tokens > positions and not beyond:
        raise ConfigError(
            f"the model has {positions:,} positions, but prompt and answer take {num_tokens:,} tokens: choose shorter "
            "lengths, or read beyond the positions with --beyond"
        )


def _cut(cache: Cache, num_tokens: int) -> Cache | None:
    """Remove the last tokens from a cache; return None if the cache cannot restore what they evicted."""
    try:
        cache.crop(-num_tokens)
    except (RuntimeError, ValueError, NotImplementedError):
        return None
    return cache
