"""A model that reads one prompt at a time: what it answers, and how likely it finds given answers."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from longlora.errors import CheckpointError, ConfigError
from longlora.evaluation.logits import Model, base_model, input_device, keeps_logits
from longlora.evaluation.scoring import evaluation_mode
from longlora.evaluation.trials import Question
from longlora.models.generation import plain_generation, plain_settings

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def share_found(answer: str, expected: Sequence[str], distractors: Sequence[str] = ()) -> float:
    """Return the share of the expected words that the answer holds, 0 as soon as a distractor comes before them.

    Words are whole: 123 is not found in 1234. Case, runs of white space and thousands separators do not matter. With a
    distractor in front of the first expected word the answer is wrong, because a model that lists all that it has seen
    would hold any answer.
    """
    text = _normal(answer)
    places = [_place(text, word) for word in expected]
    found = [place for place in places if place is not None]
    wrong = [place for word in distractors if (place := _place(text, word)) is not None]
    if not found or (wrong and min(wrong) < min(found)):
        return 0.0
    return len(found) / len(expected)


def _normal(text: str) -> str:
    return _THOUSANDS.sub("", " ".join(text.split())).casefold()


def _place(text: str, word: str) -> int | None:
    match = re.search(rf"(?<!\w){re.escape(_normal(word))}(?!\w)", text)
    return match.start() if match else None


_RULED_OUT = -10_000.0  # nats; JSON has no infinity


class Reader:
    """Asks a model questions: greedily, with its KV cache, one prompt at a time, so that nothing is padded.

    What the model's own generation settings say is left out, all but its end tokens: a penalty for repetition, say,
    would punish a model for repeating the number that it was asked for.
    """

    def __init__(self, model: Model, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        self._tokenizer = tokenizer

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Put the model into evaluation, and give it back as it was."""
        with evaluation_mode(self._model):
            yield

    def ask(self, question: Question) -> tuple[str, dict[str, float]]:
        """Return the generated answer and its scores; the prompt is read once, for generation and for forced choice.

        Scores: `generated`, 1 if the answer holds all that is expected; `found`, the share of it. With choices also
        `chosen`, 1 if the right one is the likeliest (one k-th if k are equally likely), `rank` (1 is best), `margin`,
        its log-probability less that of the best wrong one, in nats.

        Raises:
            CheckpointError: the model produces NaN.
        """
        scores: dict[str, float] = {}
        cache = None
        if question.choices:
            log_probabilities, cache = self._likelihoods(question)
            scores |= compare(log_probabilities)
        answer = self._generate(question, cache)
        found = share_found(answer, question.expected, question.distractors)
        return answer, {"generated": float(found == 1), "found": found} | scores

    def _generate(self, question: Question, cache: Cache | None) -> str:
        input_ids = self._tensor(question.input_ids)
        settings = plain_settings(self._model, self._tokenizer, max_new_tokens=question.max_new_tokens)
        settings.update(use_cache=True, output_logits=True, return_dict_in_generate=True)
        with plain_generation(self._model):
            output = self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                generation_config=settings,
                past_key_values=cache,
            )
        if any(logits.isnan().any().item() for logits in output.logits):
            raise _not_a_number(len(question.input_ids))
        new = output.sequences[0, input_ids.shape[1] :].tolist()
        return self._tokenizer.decode(new, skip_special_tokens=True)

    def _likelihoods(self, question: Question) -> tuple[list[float], Cache | None]:
        """Return each choice's log-probability, and a cache of the context's tokens but the last, if it can be cut."""
        context = self._tensor(question.input_ids[: question.choice_context])  # (1, T)
        last = question.input_ids[question.choice_context - 1]
        cache = self._model(input_ids=context[:, :-1], use_cache=True, **self._last_rows(1)).past_key_values
        values = []
        for choice in question.choices:
            tail = self._tensor([last, *choice[:-1]])  # (1, tokens of the choice)
            if cache is not None:
                logits = self._model(input_ids=tail, past_key_values=cache, use_cache=True).logits
                cache = _cut(cache, tail.shape[1])
            else:
                whole = torch.cat([context[:, :-1], tail], dim=1)
                rows = self._last_rows(tail.shape[1])
                logits = self._model(input_ids=whole, use_cache=False, **rows).logits[:, -tail.shape[1] :]
            log_probabilities = torch.log_softmax(logits[0].float(), dim=-1)
            value = log_probabilities[torch.arange(len(choice)), torch.tensor(choice)].sum().item()
            if math.isnan(value):
                raise _not_a_number(len(question.input_ids))
            values.append(value)
        return values, cache

    def _last_rows(self, count: int) -> dict[str, int]:
        """Ask for few rows of logits where the model can be asked: those of a long prompt are larger than the model."""
        return {"logits_to_keep": count} if keeps_logits(self._model) else {}

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], device=input_device(self._model))


def compare(log_probabilities: Sequence[float]) -> dict[str, float]:
    """Score a forced choice by log-probabilities in nats, the right choice's first; ties count as drawn by lot.

    With g wrong choices likelier and e as likely as the right one: rank `1 + g + e / 2`, and chosen `1 / (1 + e)` if g
    is 0. A choice that the model rules out (minus infinity) counts as -10,000 nats.
    """
    right, *wrong = (max(value, _RULED_OUT) for value in log_probabilities)
    greater, equal = sum(value > right for value in wrong), sum(value == right for value in wrong)
    return {
        "chosen": 0.0 if greater else 1 / (1 + equal),
        "rank": 1 + greater + equal / 2,
        "margin": right - max(wrong),
    }


def check_positions(model: Model, num_tokens: int, *, beyond: bool) -> None:
    """Refuse to read more tokens than the model has positions, unless told to.

    Raises:
        ConfigError: prompt and answer are longer than the model's positions.
    """
    # Models without attention, such as Mamba's, have no such number, and no such limit.
    positions = getattr(base_model(model).config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and num_tokens > positions and not beyond:
        raise ConfigError(
            f"the model has {positions:,} positions, and prompt and answer take {num_tokens:,} tokens: choose shorter "
            "lengths, or read beyond on purpose with --beyond"
        )


def _cut(cache: Cache, num_tokens: int) -> Cache | None:
    """Take the last tokens out of a cache; None if it is of a kind that forgets what they pushed out."""
    try:
        cache.crop(-num_tokens)
    except (RuntimeError, ValueError, NotImplementedError):
        return None
    return cache


def _not_a_number(num_tokens: int) -> CheckpointError:
    return CheckpointError(
        f"The model produced NaN after a prompt of {num_tokens:,} tokens: load it in bfloat16 or float32, or mend it. "
        "The trials finished before are kept, and the same command goes on after them."
    )
