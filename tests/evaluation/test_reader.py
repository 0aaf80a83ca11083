"""Answers and likelihoods against loops without cache, one token and one choice at a time."""

import math
from collections.abc import Sequence

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from longlora.errors import CheckpointError, ConfigError
from longlora.evaluation.questions import Question
from longlora.evaluation.reader import check_positions, compare, read_answer

CHOICES = ((40, 41, 42), (40, 41, 43), (50, 51, 52), (60, 61, 62))


def llama(vocabulary_size: int, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "eos_token_id": 1,
    }
    config = LlamaConfig(vocab_size=vocabulary_size, initializer_range=0.4, max_position_embeddings=64, **shape)
    return LlamaForCausalLM(config).eval()


def sliding(vocabulary_size: int) -> MistralForCausalLM:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "eos_token_id": 1,
    }
    config = MistralConfig(
        vocab_size=vocabulary_size, num_key_value_heads=1, initializer_range=0.4, sliding_window=7, **shape
    )
    return MistralForCausalLM(config).eval()


def question(
    seed: int, *, tokens: int = 21, context: int | None = None, choices: Sequence[tuple[int, ...]] = CHOICES
) -> Question:
    ids = torch.randint(3, 200, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Question(
        input_ids=ids,
        expected=("1234",),
        max_new_tokens=9,
        distance=3,
        choices=tuple(choices),
        choice_context=context or tokens,
    )


@torch.no_grad()
def naive_answer(model: torch.nn.Module, asked: Question, tokenizer: PreTrainedTokenizerFast) -> str:
    ids = list(asked.input_ids)
    for _ in range(asked.max_new_tokens):
        ids.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[len(asked.input_ids) :], skip_special_tokens=True)


@torch.no_grad()
def naive_log_probability(model: torch.nn.Module, context: Sequence[int], choice: Sequence[int]) -> float:
    total, ids = 0.0, list(context)
    for token in choice:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        total += torch.log_softmax(logits.double(), dim=-1)[token].item()
        ids.append(token)
    return total


@pytest.mark.parametrize("make", [llama, sliding])
@pytest.mark.parametrize("context", [21, 19, 2])
def test_answer_and_choice_equal_the_loop_without_cache(
    byte_level: PreTrainedTokenizerFast, make: object, context: int, seed: int
) -> None:
    model = make(len(byte_level))  # type: ignore[operator]
    asked = question(seed, context=context)
    answer, scores = read_answer(model, byte_level, asked)
    expected = [naive_log_probability(model, asked.input_ids[:context], choice) for choice in CHOICES]
    assert answer == naive_answer(model, asked, byte_level)
    assert scores["margin"] == pytest.approx(expected[0] - max(expected[1:]), abs=1e-4)
    assert scores["rank"] == 1 + sum(value > expected[0] for value in expected[1:])
    short = [naive_log_probability(model, asked.input_ids[: context - 1], choice) for choice in CHOICES]
    # A token of context less would be noticed: 120 logarithms are 0.81 ± 1.44, and the bound lies 6.5 deviations below.
    assert abs(short[0] - max(short[1:]) - scores["margin"]) > 2e-4


def test_the_prompt_is_read_once(byte_level: PreTrainedTokenizerFast) -> None:
    from tests.evaluation.scripted import scripted

    model = scripted(byte_level)
    read_answer(model, byte_level, question(0, tokens=500))
    # Prompt, three tokens for each of four choices, one token for each generated one.
    assert model.num_tokens_read <= 500 + 4 * 3 + 9


def test_answers_end_where_the_model_ends_them(byte_level: PreTrainedTokenizerFast) -> None:
    model = llama(len(byte_level))
    asked = question(1, choices=())
    with torch.no_grad():
        first = model(input_ids=torch.tensor([asked.input_ids])).logits[0, -1].argmax().item()
    model.generation_config.eos_token_id = [first, 7]
    answer, scores = read_answer(model, byte_level, asked)
    assert answer in ("", byte_level.decode([first]))
    assert scores == {"generated": 0.0, "found": 0.0}


def test_the_model_s_own_way_to_generate_is_left_out_and_given_back(byte_level: PreTrainedTokenizerFast) -> None:
    model = llama(len(byte_level))
    asked = question(2, choices=())
    expected = naive_answer(model, asked, byte_level)
    own = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=3.0, top_k=2, eos_token_id=1)
    model.generation_config = own
    model.train()
    for _ in range(2):
        assert read_answer(model, byte_level, asked)[0] == expected
    assert model.generation_config is own and model.training
    assert own.repetition_penalty == 3.0


def test_an_adapter_answers_as_its_merged_weights(byte_level: PreTrainedTokenizerFast) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(llama(len(byte_level)), config).eval()
    asked, results = question(3), []
    for model in (adapted, adapted.merge_and_unload(), llama(len(byte_level))):
        results.append(read_answer(model, byte_level, asked))
        if model is adapted:
            adapted_result = results[0]
    assert adapted_result[0] == results[1][0] != results[2][0]
    assert adapted_result[1] == pytest.approx(results[1][1], abs=1e-4)


@pytest.mark.parametrize("choices", [CHOICES, ()])
def test_nan_is_refused(byte_level: PreTrainedTokenizerFast, choices: tuple[tuple[int, ...], ...]) -> None:
    model = llama(len(byte_level))
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(CheckpointError, match="NaN after a prompt of 21 tokens: load it in bfloat16 or float32"):
        read_answer(model, byte_level, question(0, choices=choices))


@pytest.mark.parametrize(
    ("values", "chosen", "rank", "margin"),
    [
        ([-1.0, -2.0, -3.0], 1, 1, 1),
        ([-2.0, -1.0, -3.0], 0, 2, -1),
        ([-2.0, -2.0, -3.0], 1 / 2, 1.5, 0),
        ([-2.0, -2.0, -2.0, -2.0], 1 / 4, 2.5, 0),
        ([-2.0, -2.0, -1.0], 0, 2.5, -1),
        ([-math.inf, -1.0], 0, 2, -9999),
        ([-math.inf, -math.inf], 1 / 2, 1.5, 0),
    ],
)
def test_forced_choice_by_hand(values: list[float], chosen: float, rank: float, margin: float) -> None:
    assert compare(values) == {"chosen": chosen, "rank": rank, "margin": margin}


def test_more_tokens_than_positions(byte_level: PreTrainedTokenizerFast) -> None:
    model = llama(len(byte_level))
    check_positions(model, 64, beyond=False)
    check_positions(model, 65, beyond=True)
    with pytest.raises(ConfigError, match="the model has 64 positions, but prompt and answer take 65 tokens"):
        check_positions(model, 65, beyond=False)
    del model.config.max_position_embeddings
    check_positions(model, 65, beyond=False)
