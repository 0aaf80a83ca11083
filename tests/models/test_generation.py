"""Where a model stops, and that it writes by what it is given and nothing else."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from tests.templates import CHATML, GLM, LLAMA_2, PHI_3, with_template
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from longlora.data.encode import IGNORED, encode_conversation
from longlora.models.chat_template import ensure_chat_template
from longlora.models.generation import (
    end_tokens,
    lasting_settings,
    make_lasting,
    plain_generation,
    plain_settings,
    saved_settings,
    turn_end,
)
from longlora.models.load import load_for_inference


@pytest.fixture
def tokenizer(base_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base_model)


@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, "<|im_end|>"), (PHI_3, "<|end|>"), (GLM, "<|user|>"), (LLAMA_2, "</s>"), (None, "</s>")],
    ids=["ChatML", "Phi 3", "GLM 4", "Llama 2", "the paper's"],
)
def test_the_end_of_a_turn_is_what_the_template_writes(
    tokenizer: PreTrainedTokenizerBase, template: str | None, end: str
) -> None:
    with_template(tokenizer, template)
    ensure_chat_template(tokenizer)
    number = turn_end(tokenizer)
    assert tokenizer.convert_ids_to_tokens(number) == end
    assert end_tokens(GenerationConfig(eos_token_id=[7, 1]), tokenizer) == list(dict.fromkeys([7, 1, number]))


@pytest.mark.parametrize("template", [CHATML, LLAMA_2, None], ids=["ChatML", "Llama 2", "the paper's"])
def test_it_is_what_fine_tuning_teaches(tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    with_template(tokenizer, template)
    ensure_chat_template(tokenizer)
    messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
    encoded = encode_conversation(tokenizer, messages, context_length=1000)
    learned = [label for label in encoded.labels if label != IGNORED]
    assert [label for label in learned if label in tokenizer.all_special_ids] == [turn_end(tokenizer)]


@pytest.mark.parametrize("template", [None, "{{ '<|user|>' ~ messages[0].content }}", "{{ raise_exception('no') }}"])
def test_a_template_that_ends_no_turn(tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    with_template(tokenizer, template)
    assert turn_end(tokenizer) is None
    assert end_tokens(None, tokenizer) == [tokenizer.eos_token_id]


def test_words_that_the_tokenizer_does_not_know_are_no_end(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.unk_token = "."
    with_template(tokenizer, "{{ messages[0].content ~ messages[1].content ~ '.</s>' }}")
    assert turn_end(tokenizer) == tokenizer.eos_token_id


def test_a_tokens_name_within_an_answer_is_no_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """The end is looked for behind the answer, not in what the template writes before it."""
    with_template(tokenizer, "{{ '<|im_start|>' ~ messages[0].content ~ '<|im_start|>' ~ messages[1].content ~ '.' }}")
    assert turn_end(tokenizer) is None


def test_the_likeliest_token_each_time_whatever_the_model_says(
    base_model: Path, tokenizer: PreTrainedTokenizerBase, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_model).eval()
    own = GenerationConfig(
        do_sample=True,
        temperature=0.3,
        top_k=3,
        min_p=0.2,
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
        suppress_tokens=list(range(3, 200)),
        eos_token_id=1,
    )
    model.generation_config = copy.deepcopy(own)
    prompt = torch.randint(3, 259, (1, 9), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        written = prompt
        for _ in range(12):
            written = torch.cat([written, model(written).logits[:, -1:].argmax(-1)], dim=1)
            if written[0, -1] == 1:
                break
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        with plain_generation(model):
            settings = plain_settings(model, tokenizer, max_new_tokens=12)
            found = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert found.tolist() == written.tolist()
    assert caplog.records == []
    assert model.generation_config == own
    # What it is kept from: the model's own settings would have acted.
    greedy = GenerationConfig(do_sample=False, max_new_tokens=12, pad_token_id=2)
    assert (
        model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy).tolist()
        != written.tolist()
    )


def test_at_a_temperature_every_token_may_be_drawn(base_model: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_model).eval()
    model.generation_config.update(do_sample=True, top_k=1)
    prompt = torch.tensor([[5, 6, 7]] * 64)
    with plain_generation(model):
        settings = plain_settings(model, tokenizer, max_new_tokens=1, temperature=5.0)
        found = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
    assert len(set(found[:, -1].tolist())) > 10


def test_a_temperature_without_do_sample_is_repaired_and_said(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = lasting_settings(GenerationConfig(temperature=0.9, top_p=0.6, eos_token_id=1), tokenizer)
    settings.save_pretrained(tmp_path)
    assert "without do_sample" in caplog.text and "do_sample is set to true" in caplog.text
    read = GenerationConfig.from_pretrained(tmp_path)
    assert (read.do_sample, read.temperature, read.top_p, read.eos_token_id) == (True, 0.9, 0.6, [1])


def test_settings_that_nothing_repairs_leave_the_special_tokens(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = GenerationConfig(bos_token_id=0, eos_token_id=7, pad_token_id=2)
    own.num_beams, own.num_return_sequences = 1, 3
    own.length_penalty = 2.0
    settings = lasting_settings(own, tokenizer)
    settings.save_pretrained(tmp_path)
    assert "only its special tokens are kept" in caplog.text
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (0, [7, 1], 2)


def test_settings_in_order_are_kept(base_model: Path, tokenizer: PreTrainedTokenizerBase, caplog) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_model)
    model.generation_config.update(do_sample=True, temperature=0.7, repetition_penalty=1.1)
    make_lasting(model, tokenizer)
    assert caplog.text == ""
    kept = model.generation_config
    assert (kept.temperature, kept.repetition_penalty, kept.eos_token_id) == (0.7, 1.1, [1])


def test_without_settings_of_its_own_a_model_has_those_of_its_configuration(base_model: Path, tmp_path: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained(base_model).config
    assert saved_settings(tmp_path, config).eos_token_id == 1


def test_loaded_models_stop_in_plain_generate(base_model: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base_model), AutoTokenizer.from_pretrained(base_model)
    with_template(tokenizer, CHATML)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_for_inference(tmp_path)
    assert loaded.generation_config.eos_token_id == [1, tokenizer.convert_tokens_to_ids("<|im_end|>")]
